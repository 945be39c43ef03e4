"""The benchmark: dropfast, a plain copy and every peer that is installed, side by side on this machine."""

from __future__ import annotations

import importlib.util
import time
from json import dumps
from pathlib import Path

SHAPES = (4, 10), (32, 256), (128, 1024), (1024, 1024), (4096, 4096)
QUICK_SHAPES = (4, 10), (128, 1024), (1024, 1024)
MODES = (0.5, False), (0.25, False), (0.1, False), (0.5, True)  # rate, shared
QUICK_MODES = (0.5, False), (0.1, False), (0.5, True)


def run(
    *,
    json: Path | None = None,
    plot: Path = Path("dropfast-bench.png"),
    threads: int = 1,
    quick: bool = False,
    peers: bool = True,
) -> bool:
    """Measure, print tables, and draw the picture.

    Parameters
    ----------
    json : Path, optional
        Where to write every measurement and what is known of the machine.
    plot : Path, default 'dropfast-bench.png'
        Where to write the picture, a PNG.
    threads : int, default 1
        How many threads each contender may use. What is written in NumPy or Numba uses one.
    quick : bool, default False
        Fewer sizes, rates and rounds: nothing that is larger than the cache.
    peers : bool, default True
        Whether to measure other people's dropout too.

    Returns
    -------
    bool
        Whether all files could be written.

    Raises
    ------
    SystemExit
        If a package that only the benchmark needs is not installed.
    """
    needed = "rich", "matplotlib", "threadpoolctl"
    missing = [name for name in needed if importlib.util.find_spec(name) is None]
    if missing:
        raise SystemExit(
            f'the benchmark needs {" and ".join(missing)}, not installed here: pip install "dropfast[bench]"'
        )

    # Only now, for they import those packages.
    from dropfast._report import Report
    from dropfast.bench import machine, picture, tables
    from dropfast.bench.case import Case
    from dropfast.bench.contenders import CONTENDERS
    from dropfast.bench.measure import Timing, measure

    began = time.perf_counter()
    report = Report()
    taking_part = [c for c in CONTENDERS if c.version() is not None and (peers or not c.peer)]
    timings: list[Timing] = []
    with machine.limit_threads(threads):
        report.heading("The machine")
        for line in machine.describe():
            report.line(line)
        for rate, shared in QUICK_MODES if quick else MODES:
            cases = [Case(shape, rate, shared=shared, threads=threads) for shape in (QUICK_SHAPES if quick else SHAPES)]
            report.heading(f"{cases[0].mode}, float32, {threads} thread{'s' * (threads > 1)}")
            mine: list[Timing] = []
            for case in report.track("timing", cases):
                mine += measure(case, taking_part, rounds=5 if quick else 21)
            tables.show(report, mine)
            timings += mine
        found = machine.info()
    tables.explain(report)
    written = True
    if json is not None:
        content = {"machine": found, "threads": threads, "timings": [timing.as_dict() for timing in timings]}
        text = dumps(content, indent=1) + "\n"
        written = report.save("The measurements are in", json, lambda path: path.write_text(text))
    written &= report.save("The picture is", plot, lambda path: picture.draw(path, timings, found))
    report.line(f"All this took {time.perf_counter() - began:.0f} s.")
    return written
