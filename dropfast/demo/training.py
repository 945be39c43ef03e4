"""What it does to training: handwritten digits, with no dropout, with per-sample and with shared masks."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

from dropfast._report import Report
from dropfast.demo.network import Adam, Array, Labels, Network, train_epoch

# Usual settings, and few images, so that there is something to overfit. They were settled with other seeds.
SIZES = 64, 256, 256, 10
RATE = 0.5
BATCH = 64
TRAIN = 256
EPOCHS = 1, 2, 3, 4, 6, 8, 11, 16, 23, 32, 45, 64, 91, 128  # after which accuracy is measured: about 2^(k/2)
MODES: dict[str, tuple[float, tuple[int, ...]]] = {
    "no dropout": (0.0, ()),
    "per-sample": (RATE, ()),
    "shared": (RATE, (0,)),
}


@dataclass(frozen=True)
class Data:
    """The digits in two parts: for training and for the test."""

    x: Array
    labels: Labels
    x_test: Array
    labels_test: Labels


@dataclass(frozen=True)
class Trained:
    """Test accuracy in percent: for each mode an array of seeds x epochs, the latter as in `epochs`."""

    epochs: tuple[int, ...]
    accuracy: dict[str, npt.NDArray[np.float64]]

    def final(self, mode: str) -> npt.NDArray[np.float64]:
        """Return the accuracy of each seed after the last epoch: no epoch is picked by its result."""
        return self.accuracy[mode][:, -1]

    def difference(self, mode: str, other: str, epoch: int = -1) -> tuple[float, float]:
        """Return the mean of `mode` minus `other` over their common seeds, and its standard error."""
        d = self.accuracy[mode][:, epoch] - self.accuracy[other][:, epoch]
        return float(d.mean()), float(d.std(ddof=1) / np.sqrt(len(d)))


def load(seed: int) -> Data:
    """Return scikit-learn's handwritten digits (1,797 images of 8x8 pixels), split and then standardised."""
    images, digits = load_digits(return_X_y=True)
    x, x_test, labels, labels_test = train_test_split(
        images.astype(np.float32), digits, train_size=TRAIN, stratify=digits, random_state=seed
    )
    # By the training part. One scale for all pixels: some are almost always 0, and their own would blow up noise.
    mean, std = x.mean(axis=0), (x - x.mean(axis=0)).std()
    return Data((x - mean) / std, labels, (x_test - mean) / std, labels_test)


def measure(report: Report, *, seeds: int, epochs: int) -> Trained:
    """Train every mode with every seed; a seed fixes the split, the first weights and the order of the data."""
    report.heading("Training: real data, and a network in NumPy with dropfast forward and backward")
    measured = tuple(e for e in EPOCHS if e <= epochs)
    accuracy = {mode: np.empty((seeds, len(measured))) for mode in MODES}
    for seed, mode in report.track("training", [(s, m) for s in range(seeds) for m in MODES]):
        data = load(seed)
        network, order = Network(SIZES, np.random.default_rng([seed, 0])), np.random.default_rng([seed, 1])
        network.set_dropout(*MODES[mode], seed)
        adam = Adam(network)
        for epoch in range(1, measured[-1] + 1):
            train_epoch(network, adam, data.x, data.labels, BATCH, order)
            if epoch in measured:
                right = network.predict(data.x_test) == data.labels_test
                accuracy[mode][seed, measured.index(epoch)] = 100 * right.mean()
    return Trained(measured, accuracy)


def show(report: Report, trained: Trained) -> None:
    """Print the accuracies as a table."""
    at = [i for i, epoch in enumerate(trained.epochs) if epoch in (4, 16, trained.epochs[-1])]
    rows = []
    for mode, curves in trained.accuracy.items():
        last = trained.final(mode)
        spread = (last.std(ddof=1), last.min(), last.max())
        rows.append([mode, *(f"{v:.1f}" for v in curves[:, at].mean(axis=0)), *(f"{v:.1f}" for v in spread)])
    report.table(
        ["test accuracy, %", *(f"epoch {trained.epochs[i]}" for i in at), "std", "min", "max"],
        rows,
        title=f"mean of {len(last)} seeds; std, min and max: over the seeds, at the end",
    )
    report.text(
        f"scikit-learn's handwritten digits: {TRAIN} training and {1797 - TRAIN:,} test images. A network of "
        f"{'-'.join(map(str, SIZES))} units, ReLU, dropout {RATE} after both hidden layers, Adam, batches of {BATCH}. "
        "A seed stands for a split, first weights and an order of the data, the same for the three modes, so that they "
        "can be compared seed by seed. After the last epoch, in percentage points of accuracy:"
    )
    for mode, other in (("per-sample", "no dropout"), ("shared", "no dropout"), ("per-sample", "shared")):
        mean, error = trained.difference(mode, other)
        report.line(f"  {mode} minus {other}: {mean:+.2f} (standard error {error:.2f})")
