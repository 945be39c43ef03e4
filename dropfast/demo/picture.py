"""The picture: gradient noise against batch size, test error in training, and what dropout gains in the end."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, NullLocator, StrMethodFormatter

from dropfast.demo.training import BATCH, RATE, Trained
from dropfast.demo.variance import COMPARED, SIZES_OF_BATCH, Noise

# Colours of Okabe and Ito, for all kinds of sight; markers and lines tell the modes apart without them.
STYLES: dict[str, dict[str, Any]] = {
    "no dropout": {"color": "#595959", "marker": "s", "linestyle": ":"},
    "per-sample": {"color": "#0072B2", "marker": "o", "linestyle": "-"},
    "shared": {"color": "#D55E00", "marker": "^", "linestyle": "--"},
}
FONT = 12
GREY = "0.35"


def draw(out: Path, trained: Trained, noise: Noise) -> None:
    """Write the picture as a PNG."""
    figure = Figure(figsize=(14.5, 5.2), dpi=100, layout="constrained")
    noise_panel, training_panel, ending_panel = figure.subplots(1, 3, width_ratios=(10, 9, 6))
    _noise(noise_panel, noise)
    _training(training_panel, trained)
    _ending(ending_panel, trained)
    for axes in figure.axes:
        axes.tick_params(labelsize=FONT)
        axes.grid(color="0.9")
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(out, metadata={"Software": "dropfast"})


def _noise(axes: Any, noise: Noise) -> None:
    fine = np.geomspace(SIZES_OF_BATCH[0], SIZES_OF_BATCH[-1], 100)
    formulas = {"per-sample": "$V/M$", "shared": "$V/M + (M-1)/M\\;C$"}
    for mode in COMPARED:
        color, marker, line = STYLES[mode].values()
        formula, _ = noise.predicted(mode, fine)
        measured, error = noise.measured(mode)
        axes.plot(fine, formula, color=color, linestyle=line)
        axes.errorbar(SIZES_OF_BATCH, measured, error, fmt=marker, color=color, markersize=7, capsize=2)
        axes.plot(
            [], [], markersize=7, label=f"{mode}: {formulas[mode]}", **STYLES[mode]
        )  # for the legend, both in one
    c = float(noise.c.mean())
    axes.axhline(c, color=GREY, linewidth=1, linestyle=(0, (1, 3)))
    axes.annotate(f"$C$ = {c:.2g}", (1, c), (0, 5), textcoords="offset points", fontsize=FONT, color=GREY)
    axes.set(xscale="log", yscale="log")
    axes.set_title("Gradient noise: per-sample falls as 1/M,\nshared levels off", fontsize=FONT + 2)
    axes.set_xlabel("batch size $M$ (samples)", fontsize=FONT)
    axes.set_ylabel("variance of the batch gradient over masks\n(nats², summed over all weights)", fontsize=FONT)
    _ticks(axes.xaxis, SIZES_OF_BATCH)
    _ticks(axes.yaxis, (1, 3, 10, 30, 100, 300, 1000))
    title = "markers: measured, lines: formula"
    axes.legend(fontsize=FONT, frameon=False, title=title, title_fontsize=FONT, alignment="left", loc="lower left")


def _training(axes: Any, trained: Trained) -> None:
    for mode, curves in trained.accuracy.items():
        error = 100 - curves
        standard_error = error.std(axis=0, ddof=1) / np.sqrt(len(error))
        axes.errorbar(
            trained.epochs, error.mean(axis=0), standard_error, label=mode, markersize=7, capsize=2, **STYLES[mode]
        )
    axes.set(xscale="log", yscale="log")
    axes.set_title(f"Digits, rate {RATE}, batches of {BATCH}:\nshared masks learn more slowly", fontsize=FONT + 2)
    axes.set_xlabel("training (epochs)", fontsize=FONT)
    axes.set_ylabel("test error (%)", fontsize=FONT)
    _ticks(axes.xaxis, [e for e in (1, 2, 4, 8, 16, 32, 64, 128) if e <= trained.epochs[-1]])
    _ticks(axes.yaxis, (5, 10, 20, 40, 80))
    title = f"mean of {len(error)} seeds, standard error"
    axes.legend(fontsize=FONT, frameon=False, title=title, title_fontsize=FONT, alignment="left")


def _ending(axes: Any, trained: Trained) -> None:
    for place, mode in enumerate(COMPARED):
        color, marker, _ = STYLES[mode].values()
        gains = np.sort(trained.final(mode) - trained.final("no dropout"))
        mean, error = trained.difference(mode, "no dropout")
        spread = place + 0.3 * (np.arange(len(gains)) % 3 - 1) / 2  # so that equal ones stand side by side
        axes.plot(spread, gains, marker, color=color, markersize=6, markerfacecolor="none")
        axes.errorbar(place + 0.33, mean, error, fmt=marker, color=color, markersize=9, capsize=5, elinewidth=2)
        axes.annotate(f"{mean:+.2f}", (place + 0.4, mean), (4, -4), textcoords="offset points", fontsize=FONT)
    axes.axhline(0, color=GREY, linewidth=1, linestyle=":")
    axes.set_xlim(-0.4, 2.05)
    axes.set_xticks(range(len(COMPARED)), COMPARED)
    axes.set_title(f"Gain over no dropout\nafter {trained.epochs[-1]} epochs", fontsize=FONT + 2)
    axes.set_xlabel("open: each seed,\nfilled: mean, standard error", fontsize=FONT)
    axes.set_ylabel("test accuracy (percentage points)", fontsize=FONT)


def _ticks(axis: Any, places: Any) -> None:
    axis.set_major_locator(FixedLocator(list(places)))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(StrMethodFormatter("{x:g}"))
