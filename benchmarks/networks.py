"""Models of PyTorch that drop, with random weights, and a step of each: forward, backward and optimizer."""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

Step = Callable[[], object]
Made = tuple[nn.Module, Step]


@dataclass(frozen=True)
class Network:
    """What it is, its rate, and what makes it with a rate; `needs` is a package besides PyTorch."""

    title: str
    p: float
    make: Callable[[float], Made]
    needs: str = "torch"


# ---- graphs of the size of Cora: 2,708 papers, 1,433 words, 5,278 citations, 7 topics ------------

NODES, WORDS, LINKS, TOPICS = 2708, 1433, 5278, 7


def citations() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Random ones, both ways and with loops: from, to, words and topics."""
    one, other = torch.randint(NODES, (2, LINKS))
    loops = torch.arange(NODES)
    words = (torch.rand(NODES, WORDS) < 0.0127).float()
    return torch.cat([one, other, loops]), torch.cat([other, one, loops]), words, torch.randint(TOPICS, (NODES,))


class GCN(nn.Module):
    """Kipf and Welling's: two layers, dropout by the function, also of the input."""

    def __init__(self, p: float, source: Tensor, target: Tensor) -> None:
        super().__init__()
        self.p = p
        self.first, self.last = nn.Linear(WORDS, 16), nn.Linear(16, TOPICS)
        degree = torch.bincount(target, minlength=NODES).float()
        weights = (degree[source] * degree[target]).rsqrt()
        self.graph = torch.sparse_coo_tensor(torch.stack([target, source]), weights, (NODES, NODES)).coalesce()

    def forward(self, x: Tensor) -> Tensor:
        x = functional.dropout(x, self.p, self.training)
        x = torch.sparse.mm(self.graph, self.first(x)).relu()
        x = functional.dropout(x, self.p, self.training)
        return torch.sparse.mm(self.graph, self.last(x))


class Attention(nn.Module):
    """One layer of a GAT: heads that look at neighbours."""

    def __init__(self, p: float, n: int, heads: int, width: int) -> None:
        super().__init__()
        self.p, self.heads, self.width = p, heads, width
        self.linear = nn.Linear(n, heads * width, bias=False)
        self.of_source, self.of_target = (nn.Parameter(torch.randn(heads, width) / width) for _ in range(2))

    def forward(self, x: Tensor, source: Tensor, target: Tensor) -> Tensor:
        x = functional.dropout(x, self.p, self.training)
        x = self.linear(x).view(-1, self.heads, self.width)
        scores = (x * self.of_source).sum(-1)[source] + (x * self.of_target).sum(-1)[target]
        scores = functional.leaky_relu(scores, 0.2).exp()
        sums = torch.zeros(len(x), self.heads).index_add(0, target, scores)
        shares = functional.dropout(scores / sums[target], self.p, self.training)
        y = torch.zeros_like(x).index_add(0, target, shares[..., None] * x[source])
        return y.flatten(1)


class GAT(nn.Module):
    """Veličković and others': two layers of attention, dropout of inputs and of attention."""

    def __init__(self, p: float, source: Tensor, target: Tensor) -> None:
        super().__init__()
        self.source, self.target = source, target
        self.first, self.last = Attention(p, WORDS, 8, 8), Attention(p, 64, 1, TOPICS)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.last(functional.elu(self.first(x, self.source, self.target)), self.source, self.target)
        return y


def on_a_graph(network: type[GCN] | type[GAT], p: float) -> Made:
    source, target, words, topics = citations()
    model = network(p, source, target)
    return model, training(model, lambda: functional.cross_entropy(model(words), topics))


# ---- perceptrons ---------------------------------------------------------------------------------


def training(model: nn.Module, loss: Callable[[], Tensor]) -> Step:
    optimizer = torch.optim.Adam(model.parameters(), 1e-3)

    def step() -> None:
        optimizer.zero_grad()
        loss().backward()
        optimizer.step()

    return step


def layers(widths: tuple[int, ...], p: float, *, norm: bool = False) -> nn.Sequential:
    found: list[nn.Module] = []
    for n, m in pairwise(widths[:-1]):
        found += [nn.Linear(n, m), nn.Dropout(p), *([nn.LayerNorm(m)] if norm else []), nn.ReLU()]
    return nn.Sequential(*found, nn.Linear(*widths[-2:]))


def tabular(p: float) -> Made:
    """1,024 rows of 100 columns."""
    model, x, y = layers((100, 512, 384, 256, 1), p), torch.randn(1024, 100), torch.randn(1024, 1)
    return model, training(model, lambda: functional.mse_loss(model(x), y))


class Critics(nn.Module):
    """DroQ's two critics, and their targets."""

    def __init__(self, p: float) -> None:
        super().__init__()
        self.critics = nn.ModuleList(layers((23, 256, 256, 1), p, norm=True) for _ in range(2))
        self.targets = nn.ModuleList(layers((23, 256, 256, 1), p, norm=True) for _ in range(2)).requires_grad_(False)

    def forward(self, now: Tensor, then: Tensor, reward: Tensor) -> Tensor:
        with torch.no_grad():
            first, second = (target(then) for target in self.targets)
            wanted = reward + 0.99 * torch.minimum(first, second)
        return torch.stack([functional.mse_loss(critic(now), wanted) for critic in self.critics]).sum()


def droq(p: float) -> Made:
    model, batch = Critics(p), (torch.randn(256, 23), torch.randn(256, 23), torch.randn(256, 1))
    return model, training(model, lambda: model(*batch))


def mc(p: float) -> Made:
    """Monte Carlo dropout: the spread of 50 samples."""
    model, x = layers((64, 512, 512, 512, 1), p), torch.randn(1000, 64)

    def sample() -> Tensor:
        with torch.no_grad():
            return torch.stack([model(x) for _ in range(50)]).std(0)

    return model, sample


# ---- transformers --------------------------------------------------------------------------------


class Block(nn.Module):
    """One of nanoGPT's: attention drops by PyTorch's function, what comes out of it and of the MLP by modules."""

    def __init__(self, p: float, width: int, heads: int) -> None:
        super().__init__()
        self.p, self.heads = p, heads
        self.norm, self.attention = nn.LayerNorm(width), nn.Linear(width, 3 * width)
        self.projection, self.drop = nn.Linear(width, width), nn.Dropout(p)
        hidden = nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width), nn.Dropout(p)
        self.mlp = nn.Sequential(nn.LayerNorm(width), *hidden)

    def forward(self, x: Tensor) -> Tensor:
        batch, length, width = x.shape
        qkv = self.attention(self.norm(x)).view(batch, length, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        y = functional.scaled_dot_product_attention(*qkv, dropout_p=self.p, is_causal=True)
        x = x + self.drop(self.projection(y.transpose(1, 2).reshape(batch, length, width)))
        y = x + self.mlp(x)
        return y


class NanoGPT(nn.Module):
    """Two of nanoGPT's layers, in the size that it learns Shakespeare's letters with."""

    def __init__(self, p: float, letters: int = 65, length: int = 256, width: int = 384) -> None:
        super().__init__()
        self.letters, self.places = nn.Embedding(letters, width), nn.Parameter(torch.randn(length, width) / 50)
        blocks = [Block(p, width, 6) for _ in range(2)]
        self.rest = nn.Sequential(nn.Dropout(p), *blocks, nn.LayerNorm(width), nn.Linear(width, letters))

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.rest(self.letters(x) + self.places)
        return y


def nanogpt(p: float) -> Made:
    model, x = NanoGPT(p), torch.randint(65, (8, 257))
    return model, training(model, lambda: functional.cross_entropy(model(x[:, :-1]).flatten(0, 1), x[:, 1:].flatten()))


def of_transformers(model: Any, **inputs: Tensor) -> Made:
    """A model of the package transformers, which returns its loss."""
    return model.train(), training(model, lambda: model(**inputs).loss)


def bert(p: float) -> Made:
    import transformers

    rates = {"hidden_dropout_prob": p, "attention_probs_dropout_prob": p}
    sizes = {"hidden_size": 256, "intermediate_size": 1024, "num_hidden_layers": 4, "num_attention_heads": 4}
    model = transformers.BertForSequenceClassification(transformers.BertConfig(**sizes, **rates))
    return of_transformers(model, input_ids=torch.randint(30_000, (16, 128)), labels=torch.randint(2, (16,)))


def gpt2(p: float) -> Made:
    import transformers

    rates = {"resid_pdrop": p, "embd_pdrop": p, "attn_pdrop": p}
    x = torch.randint(50_000, (2, 512))
    model = transformers.GPT2LMHeadModel(transformers.GPT2Config(n_layer=3, **rates))
    return of_transformers(model, input_ids=x, labels=x)


def t5(p: float) -> Made:
    import transformers

    config = transformers.T5Config(d_model=512, num_layers=3, decoder_start_token_id=0, dropout_rate=p)
    model = transformers.T5ForConditionalGeneration(config)
    x, y = torch.randint(1, 32_000, (8, 128)), torch.randint(1, 32_000, (8, 64))
    return of_transformers(model, input_ids=x, labels=y)


def swin(p: float) -> Made:
    import transformers

    model = transformers.SwinForImageClassification(transformers.SwinConfig(drop_path_rate=p))
    return of_transformers(model, pixel_values=torch.randn(4, 3, 224, 224), labels=torch.randint(2, (4,)))


NETWORKS = {
    "gcn": Network("GCN, Cora's size", 0.5, lambda p: on_a_graph(GCN, p)),
    "gat": Network("GAT, Cora's size", 0.6, lambda p: on_a_graph(GAT, p)),
    "mc": Network("MC dropout, 50 samples of an MLP", 0.5, mc),
    "tabular": Network("MLP of a table, batch 1,024", 0.1, tabular),
    "droq": Network("DroQ's critics, batch 256", 0.01, droq),
    "bert": Network("BERT, 4 layers of 256, 16x128", 0.1, bert, "transformers"),
    "nanogpt": Network("nanoGPT, 2 layers, 8x256", 0.2, nanogpt),
    "t5": Network("T5-small, 3+3 layers, 8x128", 0.1, t5, "transformers"),
    "gpt2": Network("GPT-2, 3 layers, 2x512", 0.1, gpt2, "transformers"),
    "swin": Network("Swin-T (DropPath alone)", 0.1, swin, "transformers"),
}
