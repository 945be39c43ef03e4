"""What a shared mask can give in return: what is dropped for the whole batch need not be computed.

A step of gradient descent then takes less time; but with the noise of shared masks, training takes more of them. So
accuracy is measured over epochs, and over the processor's time.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from dropfast._report import Report
from dropfast.bench.tables import figure
from dropfast.demo import training
from dropfast.demo.network import Network, Thinned, products_saved
from dropfast.demo.training import BATCH, RATE, load

# The same data, and hidden layers so wide that most of the time goes into their products. Of the learning rates 0.03,
# 0.06, 0.1, 0.15 and 0.2 this one is the best for both kinds of masks; it was settled with other seeds.
WIDTH = 1024
LEARNING_RATE = 0.06
MODES: dict[str, tuple[type[Network], tuple[int, ...]]] = {
    "per-sample": (Network, ()),
    "shared": (Network, (0,)),
    "shared, thinned": (Thinned, (0,)),
}
COMPARED = "per-sample", "shared, thinned"
TARGETS = 80, 85, 90, 92, 94  # percent of accuracy

WIDTHS = 256, 512, 1024, 2048  # whose steps are timed
RATES = 0.1, 0.2, 0.3, 0.5, 0.7
SPELL = 0.02  # seconds of one measurement, at the least: the processor's clock may be a coarse one

Series: TypeAlias = npt.NDArray[np.float64]
Gains: TypeAlias = dict[tuple[int, float], float]


@dataclass(frozen=True)
class Race:
    """Test accuracy in percent and seconds of the processor in training, for each mode: seeds x epochs."""

    epochs: tuple[int, ...]
    accuracy: dict[str, Series]
    seconds: dict[str, Series]

    def until(self, mode: str, target: float) -> tuple[Series, Series]:
        """Return after how many epochs and seconds each seed first had that accuracy; inf if it never had."""
        found = np.full((len(self.accuracy[mode]), 2), np.inf)
        for seed, (curve, seconds) in enumerate(zip(self.accuracy[mode], self.seconds[mode], strict=True)):
            best = np.maximum.accumulate(curve)
            if best[-1] >= target:
                last = max(1, int(np.argmax(best >= target)))  # between this one and the one before, in equal steps
                before, after = best[last - 1 : last + 1]
                part = min(1.0, max(0.0, (target - before) / (after - before))) if after > before else 0.0
                for column, values in enumerate((np.array(self.epochs, np.float64), seconds)):
                    found[seed, column] = values[last - 1] + part * (values[last] - values[last - 1])
        return found[:, 0], found[:, 1]

    def common(self) -> list[int]:
        """Return those of `TARGETS` that every seed had in every mode."""
        return [t for t in TARGETS if all(np.isfinite(self.until(mode, t)[0]).all() for mode in MODES)]

    def ratios(self, target: float) -> tuple[tuple[float, float], tuple[float, float]]:
        """Return per-sample over thinned, epochs and seconds to a target: geometric mean, and factor of its error."""
        one, other = (np.log(self.until(mode, target)) for mode in COMPARED)
        logs = one - other
        errors = logs.std(axis=1, ddof=1) / np.sqrt(logs.shape[1])
        epochs, seconds = (tuple(pair) for pair in np.exp([logs.mean(axis=1), errors]).T.tolist())
        return epochs, seconds


def train(report: Report, *, seeds: int, epochs: int) -> Race:
    """Train every mode with every seed, as `training.measure` does, by plain gradient descent."""
    report.heading("Thinned: a shared mask, without the work that it drops")
    measured = tuple(e for e in training.EPOCHS if e <= epochs)
    accuracy, seconds = ({mode: np.empty((seeds, len(measured))) for mode in MODES} for _ in range(2))
    for seed, mode in report.track("training", list(itertools.product(range(seeds), MODES))):
        data, order = load(seed), np.random.default_rng([seed, 1])
        network = _network(mode, WIDTH, RATE, seed)
        spent = 0.0
        for epoch in range(1, measured[-1] + 1):
            shuffled = order.permutation(len(data.x))
            began = time.process_time()
            for i in range(0, len(shuffled), BATCH):
                chosen = shuffled[i : i + BATCH]
                network.descend(data.x[chosen], data.labels[chosen], LEARNING_RATE)
            spent += time.process_time() - began
            if epoch in measured:
                place = seed, measured.index(epoch)
                accuracy[mode][place] = 100 * (network.predict(data.x_test) == data.labels_test).mean()
                seconds[mode][place] = spent
    return Race(measured, accuracy, seconds)


def time_steps(report: Report, *, rounds: int) -> Gains:
    """Return how many times as fast a thinned step is as a per-sample one, for each width and rate; all in turns."""
    data = load(0)
    x, labels = data.x[:BATCH], data.labels[:BATCH]

    def steps(network: Network) -> Callable[[], None]:
        return lambda: network.descend(x, labels, 1e-3)

    found: Gains = {}
    for width, rate in report.track("steps", list(itertools.product(WIDTHS, RATES))):
        runs = [steps(_network(mode, width, rate, 0)) for mode in COMPARED]
        for run in runs:
            run()  # the first one is slower
        calls = [1 + int(SPELL / _seconds(run, 1)) for run in runs]
        turns = [[_seconds(run, n) for run, n in zip(runs, calls, strict=True)] for _ in range(rounds)]
        one, other = np.median(turns, axis=0).tolist()
        found[width, rate] = one / other
    return found


def sizes(width: int) -> tuple[int, ...]:
    """Return the units of each layer, with hidden layers of that width."""
    first, *_, last = training.SIZES
    return first, width, width, last


def _network(mode: str, width: int, rate: float, seed: int) -> Network:
    kind, shared_axes = MODES[mode]
    network = kind(sizes(width), np.random.default_rng([seed, 0]))
    network.set_dropout(rate, shared_axes, seed)
    return network


def _seconds(run: Callable[[], None], calls: int) -> float:
    began = time.process_time()
    for _ in range(calls):
        run()
    return max(time.process_time() - began, 1e-9) / calls


def show(report: Report, race: Race, gains: Gains) -> None:
    """Print the times to each accuracy, and the gains of a step, as tables."""
    rows = []
    for target in TARGETS:
        means = np.array([[column.mean() for column in race.until(mode, target)] for mode in MODES]).T
        cells = [figure(mean) if np.isfinite(mean) else "-" for mean in means.ravel()]
        rows.append([f"{target}%", *cells, figure(race.ratios(target)[1][0]) if target in race.common() else "-"])
    names = ["per-sample", "shared", "thinned"]
    head = [f"{unit}\n{name}" for unit, name in itertools.product(("epochs", "seconds"), names)]
    seeds = len(race.seconds["shared"])
    report.table(
        ["\naccuracy", *head, "times\nas fast"],
        rows,
        title=f"until the first time: epochs, and the processor's time; mean of {seeds} seeds",
    )
    limit = [figure(products_saved(sizes(WIDTHS[-1]), rate)) for rate in RATES]
    report.table(
        ["hidden units", *(f"rate {rate}" for rate in RATES)],
        [
            *([f"{width}", *(figure(gains[width, rate]) for rate in RATES)] for width in WIDTHS),
            [],
            ["products saved", *limit],
        ],
        title="how many times as fast as with per-sample masks a thinned step is",
    )
    units = "-".join(map(str, sizes(WIDTH)))
    report.text(
        f"The same images and batches, {units} units, dropout {RATE}, plain gradient descent with a learning rate of "
        f"{LEARNING_RATE}. Shared and thinned have the same masks, and differ by the order of sums alone: the thinned "
        "network takes the kept rows and columns of the weights, multiplies these, and adds to these. A dash stands "
        "where not every seed came so far. A step is a whole one, on one thread: forward, backward and update; medians "
        "of one run in turns. The last line is the limit: how many times fewer multiplications there are, with "
        f"{WIDTHS[-1]} units."
    )
