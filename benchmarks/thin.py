"""What thinning gains: steps of training and Monte Carlo samples, beside the dense net with a mask for each sample.

python benchmarks/thin.py [--threads 1 2] [--seconds 3] [--picture thin.png] [rate width batch net sample ...]
"""

import argparse
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, NullLocator, StrMethodFormatter

import dropfast
from dropfast._report import Report
from dropfast.bench import machine
from dropfast.bench.tables import figure
from dropfast.demo.network import products_saved

sys.path.append(str(Path(__file__).parent))
import models
from thin_ways import NUMPY, TORCH, Case, Run, of_numpy, of_torch, sample_numpy, sample_torch

SMALL = 0.01  # seconds of what may find its data in the caches
LEAST = 5  # rounds, also where one takes longer than all should
SAMPLES = 16


def mlp(width: int, batch: int = 128, rate: float = 0.5) -> Case:
    return Case((784, width, width, 10), batch, rate)


#: What varies, and the cases: from one in the middle to either side.
STEPS: dict[str, list[Case]] = {
    "rate": [mlp(2048, rate=rate) for rate in (0.1, 0.2, 0.3, 0.5, 0.7)],
    "width": [mlp(width, rate=rate) for rate in (0.5, 0.2) for width in (256, 512, 800, 2048)],
    "batch": [mlp(2048, batch, rate) for rate in (0.5, 0.2) for batch in (1, 16, 64, 128, 256)],
    "net": [
        Case(sizes, 128, rate)
        for rate in (0.5, 0.1)
        for sizes in ((784, 2048, 10), (512, 2048, 512), (784, 2048, 2048, 10), (784, 2048, 2048, 2048, 10))
    ],
}
SAMPLED = [mlp(2048, batch, rate) for rate in (0.5, 0.2) for batch in (1, 8, 32, 128, 512)]

Ways = dict[str, Callable[[Case], Run]]
STEP: Ways = {
    **{f"NumPy, {way}": lambda case, way=way: of_numpy(way, case) for way in NUMPY},  # type: ignore[misc]
    **{f"PyTorch, {way}": lambda case, way=way: of_torch(way, case) for way in TORCH},  # type: ignore[misc]
}
SAMPLE: Ways = {
    "NumPy, dense": lambda case: sample_numpy(case, SAMPLES, thinned=False),
    "NumPy, thinned": lambda case: sample_numpy(case, SAMPLES, thinned=True),
    "PyTorch, dense": lambda case: sample_torch(case, SAMPLES, thinned=False),
    "PyTorch, sample()": lambda case: sample_torch(case, SAMPLES, thinned=True),
}
Times = dict[str, float]


def times(ways: Ways, case: Case, seconds: float, clock: Callable[[], float]) -> Times:
    """The median time of each way, in seconds, all in turns."""
    runs = {name: way(case) for name, way in ways.items()}
    taken: dict[str, list[float]] = {name: [] for name in runs}
    end = time.perf_counter() + seconds
    while len(taken["NumPy, dense"]) < (LEAST if seconds else 1) or time.perf_counter() < end:
        for name, run in runs.items():
            if not taken[name] or taken[name][-1] < SMALL:
                run()  # once for the caches, which are as another way has left them
            start = clock()
            run()
            taken[name].append(clock() - start)
    return {name: float(np.median(found)) for name, found in taken.items()}


def gain(found: Times, name: str) -> float:
    """How many times as fast as the dense net with the same products."""
    return found[f"{name.partition(',')[0]}, dense"] / found[name]


# ---- what is shown -------------------------------------------------------------------------------


def show(title: str, ways: Ways, found: dict[Case, Times]) -> None:
    print(f"\n{title}:\n")
    head = [f"{name}, ms" if name.endswith("dense") else name for name in ways]
    limit = [] if ways is SAMPLE else ["products saved"]
    models.table(["net, batch, rate", *head, *limit], ["---"] * (1 + len(head) + len(limit)))
    for case, measured in found.items():
        cells = [figure(1e3 * t if n.endswith("dense") else gain(measured, n)) for n, t in measured.items()]
        name = f"{'-'.join(map(str, case.sizes))}, {case.batch}, {case.rate}"
        models.table([name, *cells, *([figure(products_saved(case.sizes, case.rate))] if limit else [])])


# Okabe's and Ito's colours, for all kinds of sight; the markers tell them apart without. Filled: with our kernels.
STYLES: dict[str, dict[str, Any]] = {
    "NumPy, thin.add": {"color": "#0072B2", "marker": "o"},
    "NumPy, thin.put": {"color": "#56B4E9", "marker": "^"},
    "NumPy, np.take": {"color": "#0072B2", "marker": "o", "markerfacecolor": "w", "linestyle": "--"},
    "NumPy, np.ix_": {"color": "#595959", "marker": "s", "markerfacecolor": "w", "linestyle": "--"},
    "PyTorch, thin()": {"color": "#D55E00", "marker": "D"},
    "PyTorch, index_select": {"color": "#D55E00", "marker": "D", "markerfacecolor": "w", "linestyle": "--"},
    "NumPy, thinned": {"color": "#0072B2", "marker": "o"},
    "PyTorch, sample()": {"color": "#D55E00", "marker": "D"},
}
PLACES = {"rate": lambda case: case.rate, "width": lambda case: case.sizes[1], "batch": lambda case: case.batch}


def lines(axes: Any, what: str, found: dict[Case, Times], limit: bool) -> None:
    """Gains at rate 0.5, or by rate."""
    chosen = {case: times for case, times in found.items() if what == "rate" or case.rate == 0.5}
    places = [PLACES[what](case) for case in chosen]
    names = [name for name in next(iter(chosen.values())) if name in STYLES]
    for name in names:
        axes.plot(places, [gain(times, name) for times in chosen.values()], label=name, **STYLES[name])
    if limit:
        axes.plot(
            places,
            [products_saved(case.sizes, case.rate) for case in chosen],
            color="black",
            linestyle=":",
            label="products saved",
        )
    axes.axhline(1, color="0.35", linewidth=1)
    axes.set(yscale="log", **({} if what == "rate" else {"xscale": "log"}))
    for axis, ticks in ((axes.xaxis, places), (axes.yaxis, (0.25, 0.5, 1, 1.5, 2, 3, 4, 6, 8))):
        axis.set_major_locator(FixedLocator(ticks))
        axis.set_minor_locator(NullLocator())
        axis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axes.set_xlabel(what, fontsize=11)
    axes.grid(color="#eeeeee")
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


TITLES = {
    "rate": "a step, 2048 wide, batch 128",
    "width": "a step, batch 128, rate 0.5",
    "batch": "a step, 2048 wide, rate 0.5",
    "sample": f"{SAMPLES} samples, 2048 wide, rate 0.5",
}


def draw(path: Path, measured: dict[int, dict[str, dict[Case, Times]]]) -> None:
    """Write the picture: a row for each number of threads, with a panel for what varies."""
    kinds = [kind for kind in next(iter(measured.values())) if kind in TITLES]
    picture = Figure(figsize=(1 + 4.2 * len(kinds), 1.1 + 4 * len(measured)), dpi=100, layout="constrained")
    rows = picture.subplots(len(measured), len(kinds), squeeze=False)
    for row, (threads, found) in zip(rows, measured.items(), strict=True):
        for axes, kind in zip(row, kinds, strict=True):
            lines(axes, "batch" if kind == "sample" else kind, found[kind], limit=kind != "sample")
            axes.set_title(f"{plural(threads)}: {TITLES[kind]}", fontsize=11)
        row[0].set_ylabel("times as fast as dense, per-sample", fontsize=11)
    legend: dict[str, Any] = {}
    for axes in rows[0]:
        handles, labels = axes.get_legend_handles_labels()
        legend |= dict(zip(labels, handles, strict=True))
    picture.legend(legend.values(), legend, loc="outside lower center", ncols=5, fontsize=11, frameon=False)
    picture.suptitle(f"Thinned networks on {machine.cpu()}", fontsize=13)
    picture.savefig(path)


def plural(threads: int) -> str:
    return f"{threads} thread{'s' * (threads > 1)}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    kinds = [*STEPS, "sample"]
    parser.add_argument("kinds", nargs="*", metavar="kind", help=f"of {', '.join(kinds)}; all if none is named")
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--seconds", type=float, default=3, help="for each case and number of threads, roughly")
    parser.add_argument("--picture", type=Path, metavar="PNG")
    args = parser.parse_args()
    if unknown := set(args.kinds) - set(kinds):
        parser.error(f"there is no kind {', '.join(sorted(unknown))}; there are {', '.join(kinds)}")
    print(machine.describe()[0], f"dropfast {dropfast.__version__}, PyTorch {torch.__version__}", sep="\n")
    report, measured = Report(), {}
    for threads in args.threads:
        clock, known = models.clock_for(threads), {}
        measured[threads] = {}
        with models.threads_are(threads):
            for kind in args.kinds or kinds:
                cases, ways = (SAMPLED, SAMPLE) if kind == "sample" else (STEPS[kind], STEP)
                for case in report.track(f"{plural(threads)}, {kind}", cases):
                    if (kind == "sample", case) not in known:
                        known[kind == "sample", case] = times(ways, case, args.seconds, clock)
                measured[threads][kind] = {case: known[kind == "sample", case] for case in cases}
                what = f"{SAMPLES} samples" if kind == "sample" else f"A step, by {kind}"
                show(f"{plural(threads)}. {what}; times as fast as dense", ways, measured[threads][kind])
    if args.picture:
        draw(args.picture, measured)


if __name__ == "__main__":
    main()
