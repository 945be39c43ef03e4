"""A small network in NumPy, with dropfast's forward and backward, and the same without what shared masks drop."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

import dropfast
from dropfast import thin

Array: TypeAlias = npt.NDArray[np.float32]
Labels: TypeAlias = npt.NDArray[np.int64]


class Network:
    """A multilayer perceptron for classification: ReLU, and dropout after each hidden layer.

    Parameters
    ----------
    sizes : sequence of int
        Units of each layer, from the inputs to the classes.
    rng : numpy.random.Generator
        For the initial weights (He et al., 2015).
    """

    def __init__(self, sizes: Sequence[int], rng: np.random.Generator) -> None:
        pairs = list(itertools.pairwise(sizes))
        self.weights = [(rng.standard_normal((n, m)) * np.sqrt(2 / n)).astype(np.float32) for n, m in pairs]
        self.biases = [np.zeros(m, np.float32) for _, m in pairs]
        self.set_dropout(0.0, (), 0)

    def set_dropout(self, rate: float, shared_axes: int | tuple[int, ...], seed: int) -> None:
        """Give every hidden layer a new dropout; with ``shared_axes=0`` one mask for each whole batch."""
        self.dropouts = [
            dropfast.Dropout(rate, shared_axes=shared_axes, rng=[seed, i]) for i in range(len(self.weights) - 1)
        ]

    def predict(self, x: Array) -> Labels:
        """Return the most probable class of each sample, with nothing dropped."""
        for w, b in zip(self.weights[:-1], self.biases, strict=False):
            x = np.maximum(x @ w + b, 0)
        return np.asarray((x @ self.weights[-1] + self.biases[-1]).argmax(axis=1), np.int64)

    def backpropagate(self, x: Array, labels: Labels) -> list[tuple[Array, Array]]:
        """Return each layer's inputs, and for each sample the gradient of its loss for the layer's outputs before ReLU.

        The loss is the cross-entropy. The gradient of a sample's loss for the weights is the outer product of the two.
        """
        inputs, active = [x], []
        for w, b, dropout in zip(self.weights, self.biases, self.dropouts, strict=False):
            z = inputs[-1] @ w + b
            active.append(z > 0)
            inputs.append(dropout(np.maximum(z, 0)))
        delta = loss_gradient(inputs[-1] @ self.weights[-1] + self.biases[-1], labels)
        deltas = [delta]
        for w, dropout, mask in zip(self.weights[::-1], self.dropouts[::-1], active[::-1], strict=False):
            delta = dropout.backward(delta @ w.T) * mask
            deltas.append(delta)
        return list(zip(inputs, deltas[::-1], strict=True))

    def descend(self, x: Array, labels: Labels, rate: float) -> None:
        """Take a step of plain gradient descent on the mean loss of a batch."""
        for w, b, (h, delta) in zip(self.weights, self.biases, self.backpropagate(x, labels), strict=True):
            delta *= np.float32(-rate / len(x))
            w += h.T @ delta
            b += delta.sum(axis=0)

    def parameters(self) -> Iterator[Array]:
        """Yield the arrays that are trained, layer by layer: weights, biases."""
        for w, b in zip(self.weights, self.biases, strict=True):
            yield w
            yield b


class Thinned(Network):
    """The same network with one mask for each whole batch, which leaves out what the masks drop.

    Units that are dropped for all samples need not be computed: the products are those of what is kept alone. Its masks
    are those of a `Network` that has ``shared_axes=0`` and takes the same steps.
    """

    def set_dropout(self, rate: float, shared_axes: int | tuple[int, ...], seed: int) -> None:
        """As in `Network`, but that all masks are shared."""
        super().set_dropout(rate, shared_axes, seed)
        self.steps = 0
        self.sides: list[tuple[dropfast.Mask | None, dropfast.Mask | None]] = []  # of a layer: inputs, outputs

    def backpropagate(self, x: Array, labels: Labels) -> list[tuple[Array, Array]]:
        """Return the same as a `Network`, for the units alone that new masks keep."""
        masks = [
            dropfast.Mask((len(x), len(b)), dropout.rate, key=dropout.key, draw=self.steps, shared_axes=0)
            for b, dropout in zip(self.biases, self.dropouts, strict=False)
        ]
        self.steps += 1
        self.sides = list(itertools.pairwise([None, *masks, None]))
        weights = [self.take(w, rows, cols) for w, (rows, cols) in zip(self.weights, self.sides, strict=True)]
        inputs, active = [x], []
        for w, b, mask in zip(weights, self.biases, masks, strict=False):
            z = inputs[-1] @ w + b[mask.kept()]
            active.append(z > 0)
            inputs.append(np.maximum(z, 0) * np.float32(mask.scale))
        deltas = [loss_gradient(inputs[-1] @ weights[-1] + self.biases[-1], labels)]
        for w, mask, on in zip(weights[::-1], masks[::-1], active[::-1], strict=False):
            deltas.append(deltas[-1] @ w.T * np.float32(mask.scale) * on)
        return list(zip(inputs, deltas[::-1], strict=True))

    def descend(self, x: Array, labels: Labels, rate: float) -> None:
        """Take a step of plain gradient descent: what was dropped has no gradient, and stays as it is."""
        parts = self.backpropagate(x, labels)
        for w, b, (rows, cols), (h, delta) in zip(self.weights, self.biases, self.sides, parts, strict=True):
            delta *= np.float32(-rate / len(x))
            thin.add(w, h.T @ delta, rows, cols)
            b[cols.kept() if cols else slice(None)] += delta.sum(axis=0)

    take = staticmethod(thin.take)  # the benchmarks have another one beside it


def products_saved(sizes: Sequence[int], rate: float) -> float:
    """Return how many times fewer multiplications a thinned step has, on average."""
    dense = kept = 0.0
    for layer, (n, m) in enumerate(itertools.pairwise(sizes)):
        products = n * m * (3 if layer else 2)  # forward, and two gradients; nobody asks for that of the inputs
        sides = (layer > 0) + (layer < len(sizes) - 2)  # on which units are dropped
        dense, kept = dense + products, kept + products * (1 - rate) ** sides
    return dense / kept


def loss_gradient(z: Array, labels: Labels) -> Array:
    """Return the gradient of each sample's cross-entropy for the last layer's outputs."""
    z = np.exp(z - z.max(axis=1, keepdims=True))
    z /= z.sum(axis=1, keepdims=True)
    z[np.arange(len(labels)), labels] -= 1
    return z


def batch_gradient(parts: list[tuple[Array, Array]]) -> Iterator[Array]:
    """Yield the gradient of the mean loss of a batch, in the order of `Network.parameters`."""
    for h, delta in parts:
        delta = delta / np.float32(len(delta))
        yield h.T @ delta
        yield delta.sum(axis=0)


class Adam:
    """The optimiser of Kingma and Ba (2015), with its usual settings."""

    def __init__(self, network: Network, rate: float = 1e-3) -> None:
        self._network, self._rate, self._steps = network, rate, 0
        self._means = [np.zeros_like(p) for p in network.parameters()]
        self._squares = [np.zeros_like(p) for p in network.parameters()]

    def step(self, gradient: Iterator[Array]) -> None:
        """Change the network's parameters, in place."""
        self._steps += 1
        rate = np.float32(self._rate * np.sqrt(1 - 0.999**self._steps) / (1 - 0.9**self._steps))
        for p, g, m, v in zip(self._network.parameters(), gradient, self._means, self._squares, strict=True):
            m += (g - m) * np.float32(0.1)
            v += (g * g - v) * np.float32(0.001)
            p -= rate * m / (np.sqrt(v) + np.float32(1e-8))


def train_epoch(network: Network, adam: Adam, x: Array, labels: Labels, batch: int, rng: np.random.Generator) -> None:
    """Take one step for each mini-batch of the data, in random order."""
    order = rng.permutation(len(x))
    for i in range(0, len(x), batch):
        chosen = order[i : i + batch]
        adam.step(batch_gradient(network.backpropagate(x[chosen], labels[chosen])))
