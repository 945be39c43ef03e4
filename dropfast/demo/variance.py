"""What the question is about: how noisy the masks make the gradient of a mini-batch.

A batch of M samples has the gradient (1/M) sum_i g_i. Over the masks, its variance is

    (1/M^2) sum_i V_i + (1/M^2) sum_{i != j} C_ij,    on average over batches    V/M + (M - 1)/M * C,

with V_i the variance of g_i, C_ij the covariance of g_i and g_j, V and C their means (Kingma, Salimans and Welling,
"Variational dropout and the local reparameterization trick", 2015). With a mask for each sample C = 0, for the g_i are
independent. With a shared mask they are not. Variances and covariances are summed over all weights and biases.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from dropfast._report import Report
from dropfast.demo.network import Adam, Array, Network, batch_gradient, train_epoch
from dropfast.demo.training import BATCH, MODES, RATE, SIZES, load

EPOCHS_BEFORE = 8  # of training: the weights are neither random nor finished
SIZES_OF_BATCH = tuple(2**k for k in range(9))  # the last one is all the training data
COMPARED = "per-sample", "shared"

Parts: TypeAlias = list[tuple[Array, Array]]
Series: TypeAlias = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Noise:
    """The variance of the mini-batch gradient over masks, measured and predicted.

    Attributes
    ----------
    samples : dict of arrays
        For each mode independent unbiased estimates of the variance, a column for each of `SIZES_OF_BATCH`.
    v, c : arrays
        Independent unbiased estimates of V and C, from other masks than `samples`.
    data : float
        The variance that picking a single sample at random adds, whatever the masks; for M samples, `data` / M.
    means : dict of arrays
        For each mode the mean gradient of the largest batch.
    """

    samples: dict[str, Series]
    v: Series
    c: Series
    data: float
    means: dict[str, Series]

    def measured(self, mode: str) -> tuple[Series, Series]:
        """Return the measured variance for each batch size, and its standard error."""
        return _mean_and_error(self.samples[mode])

    def predicted(self, mode: str, sizes: Series) -> tuple[Series, Series]:
        """Return V/M + (M - 1)/M * C for batches of M, and its standard error."""
        c = self.c if mode == "shared" else 0 * self.c
        return _mean_and_error(self.v[:, None] / sizes + c[:, None] * (sizes - 1) / sizes)

    def worst(self) -> float:
        """Return the largest distance of measured from predicted, in standard errors of their difference."""
        distances = []
        for mode in COMPARED:
            (a, a_error), (b, b_error) = self.measured(mode), self.predicted(mode, np.array(SIZES_OF_BATCH, np.float64))
            distances.append(np.abs(a - b) / np.hypot(a_error, b_error))
        return float(np.max(distances))

    def mean_distance(self) -> tuple[float, float]:
        """Return how far the modes' mean gradients are apart, and how far noise alone would make them."""
        one, two = (self.means[mode] for mode in COMPARED)
        noise = sum(self.samples[mode][:, -1].mean() / (2 * len(self.samples[mode])) for mode in COMPARED)
        return float(np.linalg.norm(one - two)), float(np.sqrt(noise))


def _mean_and_error(samples: Series) -> tuple[Series, Series]:
    return samples.mean(axis=0), samples.std(axis=0, ddof=1) / np.sqrt(len(samples))


def measure(report: Report, *, pairs: int) -> Noise:
    """Measure the variance with `pairs` pairs of masks in each mode, and V and C with as many others."""
    report.heading("Gradient noise: fixed weights, fixed data, many masks")
    data = load(seed=0)
    network, rng = Network(SIZES, np.random.default_rng(0)), np.random.default_rng(1)
    network.set_dropout(RATE, (), 0)
    adam = Adam(network)
    for _ in range(EPOCHS_BEFORE):
        train_epoch(network, adam, data.x, data.labels, BATCH, rng)

    chosen = rng.permutation(len(data.x))[: SIZES_OF_BATCH[-1]]
    x, labels = data.x[chosen], data.labels[chosen]
    samples, means = {}, {}
    for seed, mode in enumerate(COMPARED, start=1):
        network.set_dropout(*MODES[mode], seed)
        samples[mode] = np.empty((pairs, len(SIZES_OF_BATCH)))
        total = np.zeros(sum(p.size for p in network.parameters()))
        for k in report.track(f"masks, {mode}", range(pairs)):
            one, two = network.backpropagate(x, labels), network.backpropagate(x, labels)
            samples[mode][k] = [_half_squared_difference(one, two, m) for m in SIZES_OF_BATCH]
            for parts in (one, two):
                total += np.concatenate([g.ravel() for g in batch_gradient(parts)])
        means[mode] = total / (2 * pairs)

    # V and C, from inner products <g_i, g_j>. Of gradients under one mask their mean, less that of gradients under two
    # independent masks, which is <E g_i, E g_j>, is the covariance.
    network.set_dropout(*MODES["shared"], seed=3)
    v, c, spread = np.empty((3, pairs))
    for k in report.track("V and C", range(pairs)):
        one, two = network.backpropagate(x, labels), network.backpropagate(x, labels)
        of_means = _inner_products(one, two)
        v[k], c[k] = _on_and_off_diagonal((_inner_products(one, one) + _inner_products(two, two)) / 2 - of_means)
        on, off = _on_and_off_diagonal(of_means)
        spread[k] = on - off
    return Noise(samples, v, c, float(spread.mean()), means)


def _half_squared_difference(one: Parts, two: Parts, m: int) -> float:
    """Return half of the squared distance of two independent gradients: on average, the variance of a batch of m."""
    n = len(one[0][0])
    total = 0.0
    for i in range(0, n, m):
        # Both as one batch, with the second's part of the gradient subtracted: half of the difference, in one product.
        both = [
            (np.concatenate([h[i : i + m], k[i : i + m]]), np.concatenate([delta[i : i + m], -epsilon[i : i + m]]))
            for (h, delta), (k, epsilon) in zip(one, two, strict=True)
        ]
        total += sum(2 * float(np.vdot(g, g)) for g in batch_gradient(both))
    return total * m / n


def _inner_products(one: Parts, two: Parts) -> Series:
    """Return the inner product of each sample's gradient in `one` with each in `two`, over all weights and biases."""
    products = np.zeros((len(one[0][0]), len(two[0][0])))
    for (h, delta), (k, epsilon) in zip(one, two, strict=True):
        products += (h @ k.T + 1) * (delta @ epsilon.T)  # weights: an outer product; biases: as if their input were 1
    return products


def _on_and_off_diagonal(a: Series) -> tuple[float, float]:
    n = len(a)
    return float(np.trace(a) / n), float((a.sum() - np.trace(a)) / (n * (n - 1)))


def show(report: Report, noise: Noise) -> None:
    """Print measured and predicted variances as a table, and whether the mean gradients agree."""
    sizes = np.array(SIZES_OF_BATCH, np.float64)
    columns: list[list[str]] = [[f"{m}" for m in SIZES_OF_BATCH]]
    for mode in COMPARED:
        for values, errors in (noise.measured(mode), noise.predicted(mode, sizes)):
            columns.append([f"{v:.4g} +- {error:.2g}" for v, error in zip(values, errors, strict=True)])
    columns.append([f"{r:.1f}" for r in noise.measured("shared")[0] / noise.measured("per-sample")[0]])
    report.table(
        ["\nM", "per-sample\nmeasured", "\nformula", "shared\nmeasured", "\nformula", "shared /\nper-sample"],
        list(zip(*columns, strict=True)),
        title="variance over the masks of the gradient of a batch of M, +- its standard error",
    )
    distance, by_chance = noise.mean_distance()
    length = np.linalg.norm(noise.means["shared"])
    report.text(
        f"Summed over all weights. The formula is V/M + (M-1)/M C with V = {noise.v.mean():.4g}, and C = 0 per-sample "
        f"or {noise.c.mean():.3g} shared. These are estimated too, from other masks, and so the formula has an error "
        f"of its own; measured and formula are never further apart than {noise.worst():.1f} standard errors of their "
        f"difference. The mean is the same: the two modes' mean gradients, {length:.2g} "
        f"long, are {distance:.2g} apart, and chance alone would make that {by_chance:.2g}. Picking the samples at "
        f"random adds {noise.data:.3g}/M in both modes."
    )
