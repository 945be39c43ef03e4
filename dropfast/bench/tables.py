"""The tables: one for each mode, a column for each size."""

from __future__ import annotations

import math
from collections.abc import Sequence

from dropfast._report import Report
from dropfast.bench.measure import Timing


def rows(timings: Sequence[Timing]) -> list[list[str]]:
    """Return the table of one mode, its head first: how fast dropfast is, and how many times faster than each."""
    shapes = list(dict.fromkeys(t.case.shape for t in timings))
    by_name: dict[str, dict[tuple[int, ...], Timing]] = {}
    for t in timings:
        by_name.setdefault(t.contender.name, {})[t.case.shape] = t
    own, copy = by_name.pop("dropfast"), by_name.pop("np.copyto")
    table = [
        ["", *("x".join(map(str, shape)) for shape in shapes)],
        ["dropfast, ns per element", *(figure(own[shape].nanoseconds) for shape in shapes)],
        ["dropfast, GB/s", *(figure(own[shape].gigabytes) for shape in shapes)],
        ["share of np.copyto", *(figure(copy[shape].median / own[shape].median) for shape in shapes)],
    ]
    for name, theirs in by_name.items():
        ratios = (figure(theirs[shape].median / own[shape].median) for shape in shapes)
        table.append([f"times {name}", *ratios])
    return table


def show(report: Report, timings: Sequence[Timing]) -> None:
    """Print the table of one mode."""
    head, *body = rows(timings)
    report.table(head, [*body[:3], [], *body[3:]])


def explain(report: Report) -> None:
    """Say what the numbers are."""
    report.text(
        "Medians of one run in which all took turns, each result checked beforehand. GB/s counts the bytes of the data "
        "and of the result. np.copyto copies the same data. 'times X' says how many times as fast as X dropfast is. "
        "dropfast, NumPy (tuned), Numba and ONNX Runtime write into an array that is there; the others make a new one "
        "each time, and so does 'dropfast, no out='."
    )


def figure(value: float) -> str:
    """Return a number with two or three figures, and never with an exponent."""
    if value >= 99.5:
        return f"{value:.0f}"
    return f"{value:.3g}" if value >= 1 else f"{value:.{max(2, 1 - math.floor(math.log10(value)))}f}"
