"""What the two CNN examples share: the images, the comparison of the three dropouts, its tables and its picture."""

import argparse
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator, StrMethodFormatter
from rich.progress import track
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

import dropfast

RATE = 0.25
BATCH = 128
UNITS = 1024  # of the layer whose outputs are dropped
TRAIN = 1000  # images; the other 797 are for the test

PER_SAMPLE, SHARED, OWN = "dropfast, per sample", "dropfast, shared", "own"


class Network(Protocol):
    """A CNN with one of the dropouts, in some framework."""

    def step(self, images: np.ndarray, labels: np.ndarray) -> float:
        """Train on a batch, and return its loss."""

    def evaluate(self, images: np.ndarray, labels: np.ndarray) -> tuple[float, float]:
        """Return the mean loss and the accuracy, with nothing dropped."""

    def dropout_alone(self) -> Callable[[], object]:
        """Return a call of the network's dropout alone, for a batch."""


class Results(NamedTuple):
    """By dropout: arrays of seeds x measurements, and for the times the median seconds."""

    steps: list[int]
    train_loss: dict[str, np.ndarray]
    test_loss: dict[str, np.ndarray]
    accuracy: dict[str, np.ndarray]
    step_seconds: dict[str, float]
    alone_seconds: dict[str, float]


def main(framework: str, own: str, alone: str, build: Callable[[str, int], Network]) -> None:
    """Run an example: train with the three dropouts, print tables and draw the picture.

    `own` is what the framework calls its dropout, `alone` says what a call of `dropout_alone` is, and `build` makes the
    network with one of PER_SAMPLE, SHARED and OWN, and with the weights of a seed.
    """
    name = framework.lower()
    parser = argparse.ArgumentParser(description=f"The CNN in {framework}, with three dropouts.")
    parser.add_argument("--steps", type=int, default=200, help="training steps (default %(default)s)")
    parser.add_argument("--seeds", type=int, default=1, help="runs to average (default %(default)s)")
    parser.add_argument("--out", type=Path, default=Path(f"cnn_{name}.png"), help="picture (default %(default)s)")
    options = parser.parse_args()
    try:
        options.out.open("ab").close()
    except OSError as error:  # now, and not when all is done
        parser.error(f"--out must be a file that can be written, got {options.out}: {error.strerror}")

    results = _compare(build, options.steps, options.seeds)
    labels = {PER_SAMPLE: PER_SAMPLE, SHARED: SHARED, OWN: own}
    print(f"\nafter {options.steps} steps, mean of {options.seeds} seed(s); times are medians of this run")
    print(f"{'':24}{'accuracy':>10}{'test loss':>11}{'train loss':>12}{'dropout alone':>15}{'whole step':>13}")
    for dropout, label in labels.items():
        means = [curves[dropout][:, -1].mean() for curves in (results.accuracy, results.test_loss, results.train_loss)]
        alone_ms, step_ms = 1e3 * results.alone_seconds[dropout], 1e3 * results.step_seconds[dropout]
        print(f"{label:24}{means[0]:9.2%} {means[1]:10.4f} {means[2]:11.4f} {alone_ms:11.3f} ms {step_ms:9.1f} ms")
    _draw(options.out, framework, labels, alone, results)
    print(f"the picture is {options.out.absolute()}")


# ---- the images ----------------------------------------------------------------------------------


def digits(seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Return scikit-learn's handwritten digits as 28x28 images in [0, 1]: for training, for the test, their labels."""
    images, labels = load_digits(return_X_y=True)
    grow = _bilinear(8, 28)
    images = (grow @ (images.reshape(-1, 8, 8) / 16) @ grow.T).astype(np.float32)
    train, test, train_labels, test_labels = train_test_split(
        images, labels, train_size=TRAIN, stratify=labels, random_state=seed
    )
    return train, test, train_labels, test_labels


def _bilinear(n: int, m: int) -> np.ndarray:
    """Return the matrix that resizes an axis from n pixels to m; pixels are squares, their values those of centres."""
    at = np.clip((np.arange(m) + 0.5) * n / m - 0.5, 0, n - 1)
    return np.maximum(1 - np.abs(at[:, None] - np.arange(n)), 0)


def _batches(images: np.ndarray, labels: np.ndarray, seed: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    rng = np.random.default_rng(seed)
    while True:
        order = rng.permutation(len(images))
        for first in range(0, len(images) - BATCH + 1, BATCH):
            chosen = order[first : first + BATCH]
            yield images[chosen], labels[chosen]


# ---- the comparison ------------------------------------------------------------------------------


def _compare(build: Callable[[str, int], Network], steps: int, seeds: int) -> Results:
    """Train the three networks side by side: the same weights at first, the same batches, and turns for the clock."""
    dropouts = [PER_SAMPLE, SHARED, OWN]
    measured = sorted({max(1, round(steps * part / 20)) for part in range(1, 21)})
    curves = {dropout: np.empty((3, seeds, len(measured))) for dropout in dropouts}
    seconds: dict[str, list[float]] = {dropout: [] for dropout in dropouts}
    turns = [(seed, step) for seed in range(seeds) for step in range(1, steps + 1)]
    for seed, step in track(turns, description="training"):
        if step == 1:
            images, test, labels, test_labels = digits(seed)
            batches = _batches(images, labels, seed)
            networks = {dropout: build(dropout, seed) for dropout in dropouts}
            losses: dict[str, list[float]] = {dropout: [] for dropout in dropouts}
        batch = next(batches)
        for dropout in dropouts[step % 3 :] + dropouts[: step % 3]:
            began = time.perf_counter()
            losses[dropout].append(networks[dropout].step(*batch))
            seconds[dropout].append(time.perf_counter() - began)
        if step in measured:
            for dropout in dropouts:
                train_loss = float(np.mean(losses[dropout]))  # since the last time
                curves[dropout][:, seed, measured.index(step)] = (
                    train_loss,
                    *networks[dropout].evaluate(test, test_labels),
                )
                losses[dropout].clear()
    train_loss, test_loss, accuracy = ({d: curves[d][i] for d in dropouts} for i in range(3))
    step_seconds = {dropout: float(np.median(seconds[dropout])) for dropout in dropouts}
    alone = _in_turn({dropout: network.dropout_alone() for dropout, network in networks.items()})
    return Results(measured, train_loss, test_loss, accuracy, step_seconds, alone)


def _in_turn(calls: Mapping[str, Callable[[], object]], rounds: int = 200) -> dict[str, float]:
    """Return the median seconds of each call."""
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for name, call in [*calls.items()] * rounds:
        began = time.perf_counter()
        call()
        seconds[name].append(time.perf_counter() - began)
    return {name: float(np.median(times)) for name, times in seconds.items()}


# ---- the picture ---------------------------------------------------------------------------------

# Colours of Okabe and Ito, for all kinds of sight; markers, lines and hatches tell the dropouts apart without them.
STYLES: dict[str, dict[str, Any]] = {
    PER_SAMPLE: {"color": "#0072B2", "marker": "o", "linestyle": "-"},
    SHARED: {"color": "#D55E00", "marker": "^", "linestyle": "--"},
    OWN: {"color": "#595959", "marker": "s", "linestyle": ":"},
}
HATCHES = {PER_SAMPLE: "", SHARED: "//", OWN: ".."}
FONT = 12


def _draw(out: Path, framework: str, labels: dict[str, str], alone: str, results: Results) -> None:
    figure = Figure(figsize=(14.5, 5.6), dpi=100, layout="constrained")
    figure.get_layout_engine().set(w_pad=0.15)
    mosaic = [["accuracy", "test", "alone"], ["accuracy", "train", "step"]]
    panels = figure.subplot_mosaic(mosaic, width_ratios=(9, 8, 8))
    _accuracy(panels["accuracy"], framework, labels, results)
    _loss(panels["test"], results.steps, results.test_loss, "Test loss")
    _loss(panels["train"], results.steps, results.train_loss, "Training loss, with dropout")
    _times(panels["alone"], labels, results.alone_seconds, results.step_seconds, f"Dropout alone,\n{alone}")
    _times(panels["step"], labels, results.step_seconds, {}, "Whole training step")
    for axes in panels.values():
        axes.tick_params(labelsize=FONT)
        axes.spines[["top", "right"]].set_visible(False)
        axes.set_axisbelow(True)
    figure.savefig(out, metadata={"Software": f"dropfast {dropfast.__version__}"})


def _curve(axes: Any, steps: list[int], curves: np.ndarray, **style: Any) -> None:
    """Draw the mean of the seeds, and if there are several, its standard error."""
    seeds = len(curves)
    error = curves.std(axis=0, ddof=1) / np.sqrt(seeds) if seeds > 1 else None
    axes.errorbar(steps, curves.mean(axis=0), error, markersize=6, capsize=2, **style)


def _accuracy(axes: Any, framework: str, labels: dict[str, str], results: Results) -> None:
    for dropout, accuracy in results.accuracy.items():
        _curve(axes, results.steps, 100 * (1 - accuracy), label=labels[dropout], **STYLES[dropout])
    axes.set_yscale("log")
    axes.invert_yaxis()  # the errors are drawn, so that 98 and 99 % lie apart; accuracy is written
    axes.yaxis.set_major_locator(FixedLocator([50, 20, 10, 5, 3, 2, 1, 0.5]))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter(FuncFormatter(lambda error, _: f"{100 - error:g}"))
    seeds = len(next(iter(results.accuracy.values())))
    title = f"mean of {seeds} seeds, standard error" if seeds > 1 else "one run each"
    axes.legend(fontsize=FONT, frameon=False, title=title, title_fontsize=FONT, alignment="left", loc="lower right")
    axes.set_title(f"Test accuracy: CNN in {framework},\nrate {RATE}, batches of {BATCH}", fontsize=FONT + 2)
    axes.set_xlabel("training (steps)", fontsize=FONT)
    axes.set_ylabel("accuracy on 797 test images (%)", fontsize=FONT)
    axes.grid(color="0.9")


def _loss(axes: Any, steps: list[int], losses: dict[str, np.ndarray], title: str) -> None:
    for dropout, loss in losses.items():
        _curve(axes, steps, loss, **STYLES[dropout])
    axes.set_yscale("log")
    axes.yaxis.set_major_locator(FixedLocator([a * b for b in (1e-4, 1e-3, 1e-2, 0.1, 1) for a in (1, 3)]))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axes.set_title(title, fontsize=FONT + 2)
    axes.set_xlabel("training (steps)", fontsize=FONT)
    axes.set_ylabel("cross-entropy (nats)", fontsize=FONT)
    axes.grid(color="0.9")


def _times(axes: Any, labels: dict[str, str], seconds: dict[str, float], steps: dict[str, float], title: str) -> None:
    """Draw times as bars; `steps` are the times of the whole steps, or nothing if that is what these are."""
    for place, (dropout, t) in enumerate(seconds.items()):
        share = f", {t / steps[dropout]:.1%} of a step" if steps else ""
        axes.barh(place, 1e3 * t, 0.7, color=STYLES[dropout]["color"], hatch=HATCHES[dropout], edgecolor="white")
        text = f"{1e3 * t:.3g} ms{share}"
        axes.annotate(text, (1e3 * t, place), (4, 0), textcoords="offset points", va="center", size=FONT)
    axes.set_yticks(range(len(seconds)), [labels[dropout] for dropout in seconds])
    axes.invert_yaxis()
    axes.set_xlim(0, (2.6e3 if steps else 1.3e3) * max(seconds.values()))
    axes.set_title(title, fontsize=FONT + 2)
    axes.set_xlabel("median wall time (ms)", fontsize=FONT)
    axes.grid(color="0.9", axis="x")
