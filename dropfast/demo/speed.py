"""How fast: dropfast, what one would write in NumPy, and a plain copy, side by side."""

from __future__ import annotations

from typing import NamedTuple

import dropfast
from dropfast._report import Report
from dropfast.bench.case import Case
from dropfast.bench.contenders import Copy, Dropfast, NumPyTuned
from dropfast.bench.measure import Timing, measure
from dropfast.bench.tables import figure

SHAPES = (4, 10), (128, 1024), (1024, 1024)
MODES = (0.5, False), (0.1, False), (0.5, True)  # rate, shared; answer.py compares first and last


class Turn(NamedTuple):
    """The timings of those who took turns."""

    copy: Timing
    dropfast: Timing
    idiom: Timing

    @property
    def share(self) -> float:
        """Dropfast's speed, the copy's being 1."""
        return self.copy.median / self.dropfast.median


def take_turns(report: Report, rounds: int) -> list[Turn]:
    """Time every shape and mode."""
    report.heading("Speed: float32, one thread, into an array that is there already")
    cases = [Case(shape, rate, shared=shared) for shape in SHAPES for rate, shared in MODES]
    contenders = Copy(), Dropfast(), NumPyTuned()
    return [Turn(*measure(case, contenders, rounds)) for case in report.track("timing", cases)]


def show(report: Report, turns: list[Turn]) -> None:
    """Print the timings as a table."""
    config = dropfast.show_config(mode="dicts")
    isa = f", {config['isa']}" if config["isa"] else ""
    head = ["\nshape", "\nrate"]
    head += ["copy\nns/elem", "NumPy\nns/elem", "dropfast\nns/elem", "10^9\nelem/s", "share\nof copy", "times\nNumPy"]
    rows: list[list[str]] = []
    for turn in turns:
        case = turn.dropfast.case
        if rows and (case.rate, case.shared) == MODES[0]:
            rows.append([])
        numbers = [timing.nanoseconds for timing in (turn.copy, turn.idiom, turn.dropfast)]
        numbers += [1 / turn.dropfast.nanoseconds, turn.share, turn.idiom.median / turn.dropfast.median]
        rows.append(["x".join(map(str, case.shape)), case.mode.removeprefix("rate "), *map(figure, numbers)])
    report.table(head, rows, title=f"dropfast here: the {config['backend']} backend{isa}")
    report.text(
        "NumPy is rng.random(out=buf, dtype=float32), then x * (buf >= rate) * scale, all into arrays that are there "
        "already. Copy is np.copyto. Medians of one run in which the three took turns."
    )
