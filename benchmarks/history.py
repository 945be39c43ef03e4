"""A history of speed: runs are saved, and each case of a new one is shown beside what it was.

python benchmarks/history.py save [--folder .benchmarks] [--threads 1]
python benchmarks/history.py compare [SAVED.json] [--folder .benchmarks] [--threads 1]     by default with the last one

Times are multiples of np.copyto's in the same rounds: seconds of another day are no yardstick.
"""

import argparse
import json
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from itertools import product
from multiprocessing import get_context
from pathlib import Path
from statistics import geometric_mean, median
from typing import Any, NamedTuple, TypeAlias

from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator, StrMethodFormatter

from dropfast._report import Report
from dropfast.bench import machine, picture
from dropfast.bench.case import Case
from dropfast.bench.contenders import Copy, Dropfast, DropfastNew
from dropfast.bench.measure import measure
from dropfast.bench.tables import figure

sys.path += [str(Path(__file__).parent), str(Path(__file__).parents[1] / "tests")]
from bench_dropout import ASKED, DTYPES, RATES, SHAPES

OURS = Dropfast(), DropfastNew()
HOW = {Dropfast.name: "out=", DropfastNew.name: "no out="}
PASSES, ROUNDS = 5, 9  # a pass is a process of its own: where its memory lies is chance, too
FOLDER = Path(__file__).parents[1] / ".benchmarks"

Key: TypeAlias = tuple[Case, str]  # and the contender
Times: TypeAlias = tuple[float, ...]  # of each pass, as multiples of np.copyto's


@dataclass(frozen=True)
class Run:
    """What was measured, when, with which sources and on what."""

    made: str
    commit: str
    machine: dict[str, Any]
    times: dict[Key, Times]

    @property
    def place(self) -> str:
        """What two runs must have in common for their numbers to be close."""
        config, threads = self.machine["dropfast"], next(iter(self.times))[0].threads
        return f"{self.machine['cpu']}, {config['isa'] or config['backend']}, threads: {threads}"


class Change(NamedTuple):
    """A case in two runs."""

    case: Case
    contender: str
    before: Times
    now: Times

    @property
    def factor(self) -> float:
        return median(self.now) / median(self.before)

    @property
    def verdict(self) -> str:
        """Whether it is beyond noise: all passes of one run lie on one side of all of the other."""
        if min(self.now) > max(self.before):
            return "slower"
        return "faster" if max(self.now) < min(self.before) else ""


# ---- to measure


def cases(threads: int) -> list[Case]:
    """Return the cases of `make bench`."""
    every = product(ASKED.values(), DTYPES, SHAPES, RATES)
    return [Case(shape, rate, dtype, threads=threads, **asked) for asked, dtype, shape, rate in every]


def measured(report: Report, cases: Sequence[Case], passes: int = PASSES) -> Run:
    """Measure the cases."""
    with ProcessPoolExecutor(1, get_context("spawn"), max_tasks_per_child=1) as pool:
        begun = [pool.submit(one_pass, cases) for _ in range(passes)]
        found = [one.result() for one in report.track("measuring", begun)]
    with machine.limit_threads(cases[0].threads):
        about = machine.info()
    now = datetime.now(UTC).strftime("%Y-%m-%d %H:%M:%S")
    return Run(now, commit(), about, {key: tuple(one[key] for one in found) for key in found[0]})


def one_pass(cases: Sequence[Case]) -> dict[Key, float]:
    """Measure each case once."""
    times = {}
    with machine.limit_threads(cases[0].threads):
        for case in cases:
            copy, *own = measure(case, (Copy(), *OURS), ROUNDS)
            times |= {(case, timing.contender.name): timing.median / copy.median for timing in own}
    return times


def commit() -> str:
    """Return what git says of the checkout."""
    words = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty"]
    return subprocess.run(words, capture_output=True, text=True, check=False).stdout.strip() or "unknown"


# ---- files: a line for each case


def save(run: Run, folder: Path) -> Path:
    """Write a run into a file of its own."""
    folder.mkdir(parents=True, exist_ok=True)
    head = json.dumps({"made": run.made, "commit": run.commit, "machine": run.machine})
    lines = [
        json.dumps(asdict(case) | {"contender": contender, "times": [float(f"{time:.4g}") for time in times]})
        for (case, contender), times in run.times.items()
    ]
    path = folder / f"{run.made.replace(' ', '-').replace(':', '')}-{run.commit}.json"
    path.write_text(f'{head[:-1]}, "times": [\n' + ",\n".join(lines) + "\n]}\n")
    return path


def load(path: Path) -> Run:
    """Read one."""
    content = json.loads(path.read_text())
    times: dict[Key, Times] = {}
    for line in content.pop("times"):
        contender, passes = line.pop("contender"), tuple(line.pop("times"))
        times[Case(tuple(line.pop("shape")), **line), contender] = passes
    return Run(times=times, **content)


def saved(folder: Path) -> list[Path]:
    """Return all that were saved, the last one last."""
    return sorted(folder.glob("*.json"))


# ---- to show


def changes(before: Run, now: Run) -> list[Change]:
    """Return what both runs have, the worst first."""
    both = [Change(*key, before.times[key], times) for key, times in now.times.items() if key in before.times]
    return sorted(both, key=lambda change: -change.factor)


def show(report: Report, before: Run, now: Run) -> None:
    """Print the median of each case in two runs."""
    found = changes(before, now)
    report.heading("Times as multiples of np.copyto's, the worst change first")
    for when, run in ("before", before), ("now", now):
        report.line(f"{when + ':':8}{run.made}, {run.commit}, {run.place}")
    if before.place != now.place:
        report.line("These are not the same machine, instruction set and threads: what changes may be theirs.")
    rows = [
        (c.case.name, HOW[c.contender], figure(median(c.before)), figure(median(c.now)), percent(c.factor), c.verdict)
        for c in found
    ]
    report.table(["", "", "before", "now", "change", ""], rows)
    verdicts = [change.verdict for change in found]
    report.text(
        f"Of {len(found)}, {verdicts.count('slower')} are slower and {verdicts.count('faster')} faster beyond noise: "
        "all passes of one run lie on one side of all passes of the other. With 5 passes each, chance alone does that "
        f"once in 126 times. The geometric mean of all changes is {percent(geometric_mean(c.factor for c in found))}."
    )


def percent(factor: float) -> str:
    return f"{100 * (factor - 1):+.1f} %"


def draw(path: Path, runs: Sequence[Run]) -> None:
    """Draw what dropfast into an array that is there took in each run: a panel for what is asked, a line for each case.

    The bars are the range of the passes.
    """
    drawing = Figure(figsize=(14, 7), dpi=110, layout="constrained")
    panels = drawing.subplots(1, len(ASKED), sharey=True)
    name = Dropfast.name
    for axes, (test, asked) in zip(panels, ASKED.items(), strict=True):
        wanted = Case((), 0, **asked)
        for case, contender in runs[-1].times:
            if (contender, case.shared, case.backward) != (name, wanted.shared, wanted.backward):
                continue
            points = [(i, run.times[case, name]) for i, run in enumerate(runs) if (case, name) in run.times]
            middles = [median(times) for _, times in points]
            below = [middle - min(times) for middle, (_, times) in zip(middles, points, strict=True)]
            above = [max(times) - middle for middle, (_, times) in zip(middles, points, strict=True)]
            axes.errorbar(
                [i for i, _ in points],
                middles,
                (below, above),
                label=f"{'x'.join(map(str, case.shape))}, {case.dtype}, rate {case.rate:g}",
                color=picture.COLORS[SHAPES.index(case.shape)],
                marker=picture.MARKERS[DTYPES.index(case.dtype)],
                linestyle=picture.LINES[RATES.index(case.rate)],
            )
        axes.set_title(test.removeprefix("test_").replace("_", " "), fontsize=picture.FONT)
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
        axes.yaxis.set_minor_locator(NullLocator())
        axes.set_xticks(range(len(runs)), [f"{run.made[:10]}\n{run.commit}" for run in runs], rotation=30)
        axes.grid(which="major", color="0.9")
        axes.spines[["top", "right"]].set_visible(False)
    panels[0].set_ylabel("time, as a multiple of np.copyto's", fontsize=picture.FONT)
    drawing.suptitle(f"{runs[-1].place}: lower is faster", fontsize=picture.FONT + 2)
    drawing.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=4, frameon=False)
    drawing.savefig(path)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("save", "compare"))
    parser.add_argument("saved", type=Path, nargs="?", help="the run to compare with (default: the last one)")
    parser.add_argument("--folder", type=Path, default=FOLDER, help="where runs are (default: %(default)s)")
    parser.add_argument("--threads", type=int, default=1, metavar="N")
    arguments = parser.parse_args(argv)
    report, earlier = Report(), saved(arguments.folder)
    if arguments.what == "save":
        path = save(measured(report, cases(arguments.threads)), arguments.folder)
        report.line(f"The run is in {path}")
        return 0
    if not (arguments.saved or earlier):
        parser.error(f"no run was saved in {arguments.folder}: `make bench-save` first")
    before = load(arguments.saved or earlier[-1])
    cases_before = list(dict.fromkeys(case for case, _ in before.times))
    now = measured(report, cases_before, passes=len(next(iter(before.times.values()))))
    show(report, before, now)
    runs = [run for run in map(load, earlier) if run.place == now.place]
    plot = arguments.folder / "history.png"
    return 0 if report.save("The history is in", plot, lambda path: draw(path, [*runs, now])) else 1


if __name__ == "__main__":
    raise SystemExit(main())
