"""Steps of training and Monte Carlo samples of a perceptron, dense and thinned, in NumPy and in PyTorch."""

from collections.abc import Callable, Iterable
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

import dropfast.torch
from dropfast import Mask, thin
from dropfast.demo.network import Array, Labels, Network, Thinned

Run = Callable[[], object]
RATE_OF_LEARNING = 1e-3  # times do not depend on it


class Case(NamedTuple):
    """A perceptron with ReLU and dropout behind each hidden layer, and the data that it is given."""

    sizes: tuple[int, ...]
    batch: int
    rate: float

    def data(self) -> tuple[Array, Labels]:
        rng = np.random.default_rng(0)
        x = rng.standard_normal((self.batch, self.sizes[0]), np.float32)
        return x, rng.integers(self.sizes[-1], size=self.batch)


# ---- NumPy ---------------------------------------------------------------------------------------


class Buffered(Network):
    """Dense: the products of the gradient go into arrays that are there."""

    def __init__(self, sizes: tuple[int, ...], rng: np.random.Generator) -> None:
        super().__init__(sizes, rng)
        self.gradients = [np.empty_like(w) for w in self.weights]

    def descend(self, x: Array, labels: Labels, rate: float) -> None:
        parts = self.backpropagate(x, labels)
        for w, b, g, (h, delta) in zip(self.weights, self.biases, self.gradients, parts, strict=True):
            delta *= np.float32(-rate / len(x))
            w += np.matmul(h.T, delta, out=g)
            b += delta.sum(axis=0)


class DenseGradients(Thinned):
    """Thinned, with dense gradients, for any optimizer: these go into arrays that are there, too."""

    def __init__(self, sizes: tuple[int, ...], rng: np.random.Generator) -> None:
        super().__init__(sizes, rng)
        self.gradients = [np.empty_like(w) for w in self.weights]

    def descend(self, x: Array, labels: Labels, rate: float) -> None:
        parts = self.backpropagate(x, labels)
        for w, b, g, sides, (h, delta) in zip(
            self.weights, self.biases, self.gradients, self.sides, parts, strict=True
        ):
            delta *= np.float32(-rate / len(x))
            w += thin.put(h.T @ delta, *sides, out=g)
            cols, db = sides[1], delta.sum(axis=0)
            b += thin.put(db, cols) if cols else db


class NumPyAlone(Thinned):
    """Thinned without our kernels, as well as it went.

    Kept rows are changed whole, by gradients with zeros where columns are dropped: NumPy is slow at parts of rows.
    """

    @staticmethod
    def take(w: Array, rows: Mask | None, cols: Mask | None) -> Array:  # type: ignore[override]
        w = w if rows is None else np.take(w, rows.kept(), axis=0)
        return w if cols is None else np.take(w, cols.kept(), axis=1)

    def descend(self, x: Array, labels: Labels, rate: float) -> None:
        parts = self.backpropagate(x, labels)
        for w, b, (rows, cols), (h, delta) in zip(self.weights, self.biases, self.sides, parts, strict=True):
            delta *= np.float32(-rate / len(x))
            b[cols.kept() if cols else slice(None)] += delta.sum(axis=0)
            if cols:
                whole = np.zeros((w.shape[1], len(x)), np.float32)
                whole[cols.kept()] = delta.T
                delta = whole.T
            w[rows.kept() if rows else slice(None)] += h.T @ delta


class NumPyObvious(NumPyAlone):
    """What one writes first."""

    def descend(self, x: Array, labels: Labels, rate: float) -> None:
        parts = self.backpropagate(x, labels)
        for w, b, (rows, cols), (h, delta) in zip(self.weights, self.biases, self.sides, parts, strict=True):
            kept = [mask.kept() if mask else np.arange(n) for mask, n in zip((rows, cols), w.shape, strict=True)]
            b[kept[1]] += delta.sum(axis=0) * np.float32(-rate / len(x))
            w[np.ix_(*kept)] += h.T @ delta * np.float32(-rate / len(x))


NUMPY: dict[str, tuple[type[Network], int | tuple[int, ...]]] = {
    "dense": (Buffered, ()),
    "thin.add": (Thinned, 0),
    "thin.put": (DenseGradients, 0),
    "np.take": (NumPyAlone, 0),
    "np.ix_": (NumPyObvious, 0),
}


def of_numpy(way: str, case: Case) -> Run:
    kind, shared_axes = NUMPY[way]
    network = kind(case.sizes, np.random.default_rng(0))
    network.set_dropout(case.rate, shared_axes, 0)
    x, labels = case.data()
    return lambda: network.descend(x, labels, RATE_OF_LEARNING)


def sample_numpy(case: Case, samples: int, *, thinned: bool) -> Run:
    network = Network(case.sizes, np.random.default_rng(0))
    network.set_dropout(case.rate, 0 if thinned else (), 0)
    x, _ = case.data()
    out = np.empty((samples, case.batch, case.sizes[-1]), np.float32)

    def usual() -> Array:
        for y in out:
            h = x
            for w, b, dropout in zip(network.weights, network.biases, network.dropouts, strict=False):
                z = h @ w
                z += b
                h = dropout(np.maximum(z, 0, out=z), out=z)
            np.add(h @ network.weights[-1], network.biases[-1], out=y)
        return out

    def once() -> Array:
        """The first layer's product is the same for all samples: computed once."""
        first = np.maximum(x @ network.weights[0] + network.biases[0], 0)
        for draw, y in enumerate(out):
            masks = [
                Mask((len(x), len(b)), case.rate, key=dropout.key, draw=draw, shared_axes=0)
                for b, dropout in zip(network.biases, network.dropouts, strict=False)
            ]
            h = masks[0].compress(first)
            for w, b, (rows, cols) in zip(network.weights[1:], network.biases[1:], pairwise(masks), strict=False):
                z = h @ thin.take(w, rows, cols)
                z += b[cols.kept()]
                h = np.maximum(z, 0, out=z)
                h *= np.float32(cols.scale)
            np.add(h @ thin.take(network.weights[-1], masks[-1]), network.biases[-1], out=y)
        return out

    return once if thinned else usual


# ---- PyTorch -------------------------------------------------------------------------------------


def perceptron(sizes: Iterable[int], dropout: Callable[[], nn.Module]) -> nn.Sequential:
    *hidden, (n, m) = pairwise(sizes)
    modules = [module for i, o in hidden for module in (nn.Linear(i, o), nn.ReLU(), dropout())]
    return nn.Sequential(*modules, nn.Linear(n, m))


class IndexSelect(nn.Module):
    """Thinned without our kernels: what one writes in PyTorch."""

    def __init__(self, sizes: tuple[int, ...], rate: float) -> None:
        super().__init__()
        self.rate, self.layers = rate, nn.ModuleList(nn.Linear(*pair) for pair in pairwise(sizes))

    def forward(self, x: Tensor) -> Tensor:
        kept: Tensor | None = None
        for layer in self.layers[:-1]:
            chosen = (torch.rand(layer.out_features) >= self.rate).nonzero().squeeze(1)
            weight, bias = layer.weight.index_select(0, chosen), layer.bias.index_select(0, chosen)
            if kept is not None:
                weight = weight.index_select(1, kept)
            x, kept = functional.linear(x, weight, bias).relu() / (1 - self.rate), chosen
        last: Any = self.layers[-1]
        return functional.linear(x, last.weight if kept is None else last.weight.index_select(1, kept), last.bias)


TORCH: dict[str, Callable[[Case], nn.Module]] = {
    "dense": lambda case: perceptron(case.sizes, lambda: dropfast.torch.Dropout(case.rate)),
    "thin()": lambda case: thinned(case),
    "index_select": lambda case: IndexSelect(case.sizes, case.rate),
}


def thinned(case: Case) -> nn.Sequential:
    model = perceptron(case.sizes, lambda: dropfast.torch.Dropout(case.rate, shared_axes=0))
    dropfast.torch.thin(model)
    return model


def of_torch(way: str, case: Case) -> Run:
    torch.manual_seed(0)
    model, (x, labels) = TORCH[way](case), map(torch.from_numpy, case.data())
    optimizer = torch.optim.SGD(model.parameters(), RATE_OF_LEARNING, fused=True)

    def step() -> None:
        optimizer.zero_grad()
        functional.cross_entropy(model(x), labels).backward()
        optimizer.step()

    return step


def sample_torch(case: Case, samples: int, *, thinned: bool) -> Run:
    torch.manual_seed(0)
    model, x = TORCH["thin()" if thinned else "dense"](case), torch.from_numpy(case.data()[0])

    def usual() -> Tensor:
        with torch.no_grad():
            return torch.stack([model(x) for _ in range(samples)])

    def once() -> Tensor:
        with torch.no_grad():
            found: Tensor = dropfast.torch.sample(model, x, samples)
        return found

    return once if thinned else usual
