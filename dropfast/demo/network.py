"""A small network in NumPy, with dropfast's forward and backward: all that training and the gradient's noise need."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

import dropfast

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
        z = inputs[-1] @ self.weights[-1] + self.biases[-1]
        z = np.exp(z - z.max(axis=1, keepdims=True))
        delta = z / z.sum(axis=1, keepdims=True)
        delta[np.arange(len(labels)), labels] -= 1
        deltas = [delta]
        for w, dropout, mask in zip(self.weights[::-1], self.dropouts[::-1], active[::-1], strict=False):
            delta = dropout.backward(delta @ w.T) * mask
            deltas.append(delta)
        return list(zip(inputs, deltas[::-1], strict=True))

    def parameters(self) -> Iterator[Array]:
        """Yield the arrays that are trained, layer by layer: weights, biases."""
        for w, b in zip(self.weights, self.biases, strict=True):
            yield w
            yield b


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
