"""What dropout costs in whole models of PyTorch: steps with PyTorch's own, convert(), enable() and none, in turns.

python benchmarks/models.py [--threads 2] [--rounds 15] [gcn gat tabular droq mc ...]
"""

import argparse
import time
from collections.abc import Callable
from contextlib import nullcontext
from itertools import pairwise
from statistics import median

import torch
from torch import Tensor, nn
from torch.nn import functional

import dropfast.torch
from dropfast.bench import machine

Step = Callable[[], object]
Made = tuple[nn.Module, Step]

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


# ---- others --------------------------------------------------------------------------------------


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


MODELS: dict[str, tuple[str, float, Callable[[float], Made]]] = {
    "gcn": ("GCN, Cora's size", 0.5, lambda p: on_a_graph(GCN, p)),
    "gat": ("GAT, Cora's size", 0.6, lambda p: on_a_graph(GAT, p)),
    "tabular": ("MLP of a table, batch 1,024", 0.1, tabular),
    "droq": ("DroQ's critics, batch 256", 0.01, droq),
    "mc": ("MC dropout, 50 samples of an MLP", 0.5, mc),
}
WAYS = ("torch", "convert", "enable", "none")


def times(make: Callable[[float], Made], p: float, rounds: int) -> dict[str, float]:
    """The median time of a step in each way, in seconds."""
    steps: dict[str, Step] = {}
    for way in WAYS:
        torch.manual_seed(0)
        model, steps[way] = make(0.0 if way == "none" else p)
        if way == "convert":
            dropfast.torch.convert(model)
    found: dict[str, list[float]] = {way: [] for way in WAYS}
    for number in range(rounds + 1):
        for way in WAYS:
            with dropfast.torch.enable() if way == "enable" else nullcontext():
                steps[way]()  # once for the caches and the heap, which are as another way has left them
                start = time.perf_counter()
                steps[way]()
                taken = time.perf_counter() - start
            if number >= 1:
                found[way].append(taken)
    return {way: median(taken) for way, taken in found.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", metavar="model", help=f"of {', '.join(MODELS)}; all if none is named")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=15)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    with machine.limit_threads(args.threads):
        print(*machine.describe()[:2], f"PyTorch {torch.__version__}, threads: {args.threads}", sep="\n")
        print("\n| ms a step | torch | `convert` | `enable` | no dropout | times as fast with `enable` |")
        print("|---|---|---|---|---|---|")
        for name in args.models or MODELS:
            title, p, make = MODELS[name]
            found = times(make, p, args.rounds)
            cells = [f"{1e3 * found[way]:.3g}" for way in WAYS]
            print("|", " | ".join([title, *cells, f"{found['torch'] / found['enable']:.2g}"]), "|", flush=True)


if __name__ == "__main__":
    main()
