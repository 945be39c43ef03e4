"""Taking time."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import repeat
from typing import Any

import numpy as np

from dropfast.bench.case import Case
from dropfast.bench.contender import Contender, Run

SPELL = 2e-3  # seconds of one measurement, at the least: a clock reading is cheap next to it
SLOW = 0.05  # seconds of one call, from which on a contender sits out most of the rounds
FEWEST = 3  # measurements, even of the slowest


@dataclass(frozen=True)
class Timing:
    """Seconds of one call: what each round gave.

    Attributes
    ----------
    contender : Contender
        Who.
    case : Case
        What.
    seconds : tuple of float
        The mean of the calls of each round.
    """

    contender: Contender
    case: Case
    seconds: tuple[float, ...]

    @property
    def median(self) -> float:
        """The middle one."""
        return float(np.median(self.seconds))

    @property
    def iqr(self) -> float:
        """The spread: between the first and the third quarter."""
        first, third = np.percentile(self.seconds, [25, 75])
        return float(third - first)

    @property
    def gigabytes(self) -> float:
        """Billions of bytes in and out for each second."""
        return self.case.moved / self.median / 1e9

    @property
    def nanoseconds(self) -> float:
        """Nanoseconds for each element."""
        return 1e9 * self.median / self.case.size

    def as_dict(self) -> dict[str, Any]:
        """Return all of it as plain values."""
        case = {name: getattr(self.case, name) for name in ("shape", "dtype", "rate", "shared", "threads")}
        results = {"median": self.median, "iqr": self.iqr, "ns per element": self.nanoseconds, "GB/s": self.gigabytes}
        return {"contender": self.contender.name, **case, **results, "seconds": self.seconds}


def measure(case: Case, contenders: Sequence[Contender], rounds: int) -> list[Timing]:
    """Time the contenders, in rounds: so a busy moment of the machine strikes them alike.

    Parameters
    ----------
    case : Case
        What to do.
    contenders : sequence of Contender
        Who does it. Those that cannot are left out.
    rounds : int
        How often. Slow contenders sit out most of the rounds, and have three measurements.

    Raises
    ------
    AssertionError
        If what one of them returns is wrong.
    """
    turns = [_begin(case, contender, rounds) for contender in contenders if contender.takes(case)]
    for i in range(rounds):
        for turn in turns:
            if i * turn.rounds % rounds < turn.rounds:
                if turn.calls > 1:
                    turn.run()  # brings its data back into the cache
                turn.seconds.append(_seconds(turn.run, turn.calls))
    return [Timing(turn.contender, case, tuple(turn.seconds)) for turn in turns]


@dataclass
class _Turn:
    contender: Contender
    run: Run
    calls: int  # in a round
    rounds: int  # that it takes part in
    seconds: list[float]


def _begin(case: Case, contender: Contender, rounds: int) -> _Turn:
    """Compile, check, and find out how long a call takes."""
    run = contender.prepare(case)
    contender.check(case, run())
    once = _seconds(run, 1)
    if once < SLOW:
        return _Turn(contender, run, max(1, round(SPELL / once)), rounds, [])
    return _Turn(contender, run, 1, min(rounds, FEWEST) - 1, [once])


def _seconds(run: Run, calls: int) -> float:
    began = time.perf_counter()
    for _ in repeat(None, calls):
        run()
    return (time.perf_counter() - began) / calls
