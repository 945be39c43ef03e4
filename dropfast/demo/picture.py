"""The picture: gradient noise, test error in training, what dropout gains in the end; below, what thinning gains."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, NullLocator, StrMethodFormatter

from dropfast.demo import thinned
from dropfast.demo.network import products_saved
from dropfast.demo.thinned import RATES, WIDTH, WIDTHS, Gains, Race, Series
from dropfast.demo.training import BATCH, RATE, Trained
from dropfast.demo.variance import COMPARED, SIZES_OF_BATCH, Noise

# Colours of Okabe and Ito, for all kinds of sight; markers and lines tell the modes apart without them.
STYLES: dict[str, dict[str, Any]] = {
    "no dropout": {"color": "#595959", "marker": "s", "linestyle": ":"},
    "per-sample": {"color": "#0072B2", "marker": "o", "linestyle": "-"},
    "shared": {"color": "#D55E00", "marker": "^", "linestyle": "--"},
    "shared, thinned": {"color": "#009E73", "marker": "D", "linestyle": "-.", "markerfacecolor": "none"},
}
OF_WIDTHS = ("#9ECAE1", "o"), ("#6BAED6", "^"), ("#3182BD", "s"), ("#08519C", "D")
TICKS = 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, *(2**k for k in range(10))
FONT = 12
GREY = "0.35"


def draw(out: Path, trained: Trained, noise: Noise, race: Race, gains: Gains) -> None:
    """Write the picture as a PNG."""
    figure = Figure(figsize=(14.5, 10.2), dpi=100, layout="constrained")
    grid = figure.add_gridspec(2, 1)
    above, below = (figure.add_subfigure(grid[row]) for row in range(2))
    noise_panel, training_panel, ending_panel = above.subplots(1, 3, width_ratios=(10, 9, 6))
    _noise(noise_panel, noise)
    _errors(training_panel, trained.accuracy, dict.fromkeys(trained.accuracy, trained.epochs))
    training_panel.set_title(
        f"Digits, rate {RATE}, batches of {BATCH}:\nshared masks learn more slowly", fontsize=FONT + 2
    )
    _ending(ending_panel, trained)
    epochs_panel, seconds_panel, gains_panel = below.subplots(1, 3, width_ratios=(9, 9, 7))
    _errors(epochs_panel, race.accuracy, dict.fromkeys(race.accuracy, race.epochs))
    epochs_panel.set_title(f"The same data, {WIDTH} units wide:\nthinned learns as shared does", fontsize=FONT + 2)
    _errors(seconds_panel, race.accuracy, {mode: seconds.mean(axis=0) for mode, seconds in race.seconds.items()})
    seconds_panel.set_title("The same over time: thinned skips\nwhat it drops", fontsize=FONT + 2)
    seconds_panel.set_xlabel("training (seconds of the processor)", fontsize=FONT)
    seconds_panel.sharey(epochs_panel)
    _gains(gains_panel, gains)
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


def _errors(axes: Any, accuracy: dict[str, Series], places: Mapping[str, Any]) -> None:
    for mode, curves in accuracy.items():
        error = 100 - curves
        standard_error = error.std(axis=0, ddof=1) / np.sqrt(len(error))
        size = 10 if "markerfacecolor" in STYLES[mode] else 7
        axes.errorbar(
            places[mode], error.mean(axis=0), standard_error, label=mode, markersize=size, capsize=2, **STYLES[mode]
        )
    axes.set(xscale="log", yscale="log")
    axes.set_xlabel("training (epochs)", fontsize=FONT)
    axes.set_ylabel("test error (%)", fontsize=FONT)
    low, high = axes.get_xlim()
    _ticks(axes.xaxis, [tick for tick in TICKS if low < tick < high])
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


def _gains(axes: Any, gains: Gains) -> None:
    fine = np.linspace(RATES[0], RATES[-1], 61)
    axes.plot(
        fine,
        [products_saved(thinned.sizes(WIDTHS[-1]), rate) for rate in fine],
        color=GREY,
        linestyle=":",
        label="products saved",
    )
    for width, (color, marker) in zip(WIDTHS[::-1], OF_WIDTHS[::-1], strict=True):
        axes.plot(
            RATES,
            [gains[width, rate] for rate in RATES],
            color=color,
            marker=marker,
            markersize=7,
            label=f"{width} units",
        )
    axes.axhline(1, color=GREY, linewidth=1)
    axes.set(yscale="log")
    axes.set_title("A thinned step, times as fast\nas a per-sample one", fontsize=FONT + 2)
    axes.set_xlabel("rate", fontsize=FONT)
    _ticks(axes.xaxis, RATES)
    _ticks(axes.yaxis, (0.25, 0.5, 1, 2, 4, 8))
    axes.legend(fontsize=FONT, frameon=False, alignment="left")


def _ticks(axis: Any, places: Any) -> None:
    axis.set_major_locator(FixedLocator(list(places)))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(StrMethodFormatter("{x:g}"))
