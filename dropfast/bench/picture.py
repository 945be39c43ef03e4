"""The picture: throughput against size, for everyone."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import cycle
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, NullLocator, StrMethodFormatter

from dropfast.bench.measure import Timing

MODES = (0.5, False), (0.1, False), (0.5, True)  # one panel each; what more there is, is in the tables
FONT = 12
# Markers and lines tell all contenders apart without the colours, which are Okabe's and Ito's, for all kinds of sight.
OWN: dict[str, dict[str, Any]] = {
    "np.copyto": {"color": "black", "linestyle": "-", "linewidth": 1, "marker": "_"},
    "dropfast": {"color": "#D55E00", "linestyle": "-", "linewidth": 3, "marker": "o"},
    "dropfast, no out=": {
        "color": "#D55E00",
        "linestyle": "--",
        "linewidth": 1.5,
        "marker": "o",
        "markerfacecolor": "w",
    },
    "dropfast's twin": {"color": "#D55E00", "linestyle": ":", "linewidth": 1.5, "marker": "."},
}
COLORS = "#0072B2", "#009E73", "#CC79A7", "#595959"
LINES = "--", ":", "-."
MARKERS = "s", "D", "^", "v", "<", ">", "P", "X", "*"


def draw(out: Path, timings: Sequence[Timing], machine: dict[str, Any]) -> None:
    """Write the picture as a PNG."""
    styles = _styles(list(dict.fromkeys(t.contender.name for t in timings)))
    figure = Figure(figsize=(14, 6.4), dpi=110, layout="constrained")
    panels = figure.subplots(1, len(MODES), sharey=True)
    for axes, (rate, shared) in zip(panels, MODES, strict=True):
        _panel(axes, [t for t in timings if (t.case.rate, t.case.shared) == (rate, shared)], styles)
        axes.set_title(
            f"rate {rate}, " + ("one mask for all samples" if shared else "each sample its own mask"), fontsize=FONT
        )
    panels[0].set_ylabel("throughput (GB/s, data in and result out)", fontsize=FONT)
    config = machine["dropfast"]
    threads = timings[0].case.threads
    figure.suptitle(
        f"Dropout of float32 on {machine['cpu']} ({config['isa'] or 'no native backend'}), "
        f"{threads} thread{'s' * (threads > 1)}: higher is faster",
        fontsize=FONT + 2,
    )
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(
        handles, labels, loc="outside lower center", ncols=5, fontsize=FONT - 1, frameon=False, handlelength=4
    )
    figure.savefig(out)


def _styles(names: Sequence[str]) -> dict[str, dict[str, Any]]:
    peers = zip((name for name in names if name not in OWN), cycle(COLORS), cycle(LINES), cycle(MARKERS), strict=False)
    return OWN | {
        name: {"color": color, "linestyle": line, "marker": marker, "linewidth": 1.2}
        for name, color, line, marker in peers
    }


def _panel(axes: Any, timings: Sequence[Timing], styles: dict[str, dict[str, Any]]) -> None:
    for name, style in styles.items():
        points = sorted((t.case.size, t.gigabytes) for t in timings if t.contender.name == name)
        if points:
            axes.plot(*zip(*points, strict=True), label=name, markersize=7, **style)
    axes.set(xscale="log", yscale="log")
    sizes = sorted({t.case.size for t in timings})
    axes.xaxis.set_major_locator(FixedLocator(sizes))
    axes.set_xticklabels([_size(n) for n in sizes])
    axes.set_xlabel("elements", fontsize=FONT)
    axes.yaxis.set_major_locator(FixedLocator([0.001, 0.01, 0.1, 1, 10, 100]))
    axes.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_minor_locator(NullLocator())
    axes.tick_params(labelsize=FONT)
    axes.grid(which="major", color="0.9")
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def _size(n: int) -> str:
    """Return a number of elements in short: 40, 128 Ki, 16 Mi."""
    for factor, unit in ((1 << 20, " Mi"), (1 << 10, " Ki")):
        if n >= factor:
            return f"{n // factor}{unit}"
    return str(n)
