"""What threads bring, and what they cost between calls: `python benchmarks/threads.py [--threads 1 2 4 8 16]`.

Big calls one after the other, others 1 ms and 20 ms behind the last one, as with other layers between them, and steps
of a layer in NumPy, whose matrix product (2048x1024 by 1024x1024) has threads of its own.

--beside FOLDER is another build to compare with: `pip install --no-deps --target FOLDER .` makes one, without OpenMP by
`--config-settings=cmake.define.DROPFAST_OPENMP=OFF`. Both take turns; every figure is the median of --rounds processes.
"""

import argparse
import importlib.machinery
import importlib.util
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any, TypeAlias

import numpy as np
from matplotlib.figure import Figure

POWERS = 18, 20, 22, 24, 26  # of two: elements, of float32
GAPS = 0.001, 0.02  # seconds
AFTER_GAPS = 18, 20
STEP = "a step of NumPy"

Microseconds: TypeAlias = dict[str, float]
Run: TypeAlias = tuple[str, int]  # which build, and how many threads


# ---- in a process of its own ---------------------------------------------------------------------


def timed(call: Callable[[], object], seconds: float = 0.1, gap: float = 0) -> float:
    """The median of microseconds that a call takes."""
    times: list[float] = []
    end = time.perf_counter() + seconds
    while len(times) < 12 or time.perf_counter() < end:
        if gap:
            time.sleep(gap)
        began = time.perf_counter()
        call()
        times.append(1e6 * (time.perf_counter() - began))
    return median(times[2:])


def measure(extension: str) -> tuple[str, Microseconds]:
    """What its threads are called, and all times."""
    spec = importlib.util.spec_from_file_location("dropfast._native", extension)
    assert spec is not None
    assert spec.loader is not None
    native = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(native)
    found: Microseconds = {}

    def apply(x: Any, out: Any) -> None:
        native.apply(x, out, ((x.size,), (1,), 0, 1234567, 0, 1 << 31))  # half of them kept

    for power in POWERS:
        x = np.ones(1 << power, np.float32)
        out = np.zeros_like(x)
        found[f"2^{power}"] = timed(lambda x=x, out=out: apply(x, out))  # type: ignore[misc]
        for gap in GAPS if power in AFTER_GAPS else ():
            found[f"2^{power}, {1000 * gap:g} ms later"] = timed(
                lambda x=x, out=out: apply(x, out),  # type: ignore[misc]
                0.3,
                gap,
            )
    x, weights = np.ones((2048, 1024), np.float32), np.full((1024, 1024), 0.01, np.float32)
    y, out = np.zeros_like(x), np.zeros_like(x)
    found[STEP] = timed(lambda: (np.matmul(x, weights, out=y), apply(y.reshape(-1), out.reshape(-1))), 0.5)
    return native.threading(), found


# ---- of all of them ------------------------------------------------------------------------------


def extension_in(folder: Path) -> Path:
    return next(path for end in importlib.machinery.EXTENSION_SUFFIXES for path in folder.glob(f"_native{end}"))


def builds(beside: Path | None) -> list[Path]:
    spec = importlib.util.find_spec("dropfast")
    assert spec is not None
    assert spec.origin is not None
    return [extension_in(Path(spec.origin).parent), *([extension_in(beside / "dropfast")] if beside else [])]


def table(found: dict[Run, Microseconds]) -> str:
    names = list(dict.fromkeys(name for name, _ in found))
    threads = sorted({n for _, n in found})
    rows = [["microseconds", *(f"{name}, {n}" for n in threads for name in names)]]
    rows.append(["---"] * len(rows[0]))
    for case in next(iter(found.values())):
        rows.append([case, *(f"{found[name, n][case]:.3g}" for n in threads for name in names)])
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def draw(path: Path, found: dict[Run, Microseconds], processor: str) -> None:
    """Write the picture: how many times as fast as the fewest threads each number of threads is, by size."""
    names = list(dict.fromkeys(name for name, _ in found))
    threads = sorted({n for _, n in found})
    picture = Figure(figsize=(6.4 * len(names), 5.4), dpi=110, layout="constrained")
    panels = picture.subplots(1, len(names), sharey=True, squeeze=False)[0]
    cases = [f"2^{power}" for power in POWERS] + [STEP]
    colors = "#9ecae1", "#4292c6", "#2171b5", "#08519c", "#08306b", "#D55E00"
    for axes, name in zip(panels, names, strict=True):
        ideal = [n / threads[0] for n in threads]
        axes.plot(threads, ideal, color="#bbbbbb", linewidth=1, linestyle=":", label="as many times as threads")
        for case, color, marker in zip(cases, colors, "ov^DsP", strict=True):
            times = [found[name, n][case] for n in threads]
            label = case if case == STEP else f"$2^{{{case[2:]}}}$ elements"
            axes.plot(threads, [times[0] / t for t in times], color=color, marker=marker, linewidth=2, label=label)
        axes.set_title({"openmp": "OpenMP", "pool": "the pool"}.get(name, name), fontsize=12)
        axes.set_xscale("log", base=2)
        axes.set_yscale("log", base=2)
        axes.set_xticks(threads, [str(n) for n in threads])
        axes.set_yticks([1, 2, 4, 8, 16], ["1", "2", "4", "8", "16"])
        axes.set_ylim(0.9, 20)
        axes.set_xlabel("threads", fontsize=11)
        axes.grid(color="#eeeeee")
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
    fewest = "one thread" if threads[0] == 1 else f"{threads[0]} threads"
    panels[0].set_ylabel(f"times as fast as on {fewest}", fontsize=11)
    handles, labels = panels[0].get_legend_handles_labels()
    picture.legend(handles, labels, loc="outside lower center", ncols=4, fontsize=11, frameon=False)
    picture.suptitle(f"Threads on {processor}: higher is faster", fontsize=13)
    picture.savefig(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--beside", type=Path, metavar="FOLDER")
    parser.add_argument("--picture", type=Path, metavar="PNG")
    parser.add_argument("--measure", metavar="EXTENSION", help=argparse.SUPPRESS)  # in a process of its own
    given = parser.parse_args()
    if given.measure:
        print(json.dumps(measure(given.measure)))
        return
    from dropfast.bench import machine

    each: dict[Run, list[Microseconds]] = {}
    names: dict[Path, str] = {}
    extensions = builds(given.beside)
    for turn in range(given.rounds):
        for n in given.threads:
            for extension in extensions:
                print(f"\rround {turn + 1} of {given.rounds}, {n} threads ", end="", file=sys.stderr, flush=True)
                done = subprocess.run(
                    [sys.executable, "-P", __file__, "--measure", str(extension)],
                    env=os.environ | {"OMP_NUM_THREADS": str(n)},
                    check=True,
                    capture_output=True,
                )
                threading, times = json.loads(done.stdout)
                name = names.setdefault(extension, threading if threading not in names.values() else str(extension))
                each.setdefault((name, n), []).append(times)
    print(file=sys.stderr)
    found = {run: {case: median(times[case] for times in all_) for case in all_[0]} for run, all_ in each.items()}
    print(table(found))
    if given.picture:
        draw(given.picture, found, machine.cpu())


if __name__ == "__main__":
    main()
