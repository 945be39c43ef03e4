"""How fast: dropfast, what one would write in NumPy, and a plain copy, side by side."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

import dropfast
from dropfast.demo.report import Report

SHAPES = (4, 10), (128, 1024), (1024, 1024)
MODES = (
    ("0.5", 0.5, ()),
    ("0.1", 0.1, ()),
    ("0.5 shared", 0.5, (0,)),
)  # name, rate, axes; answer.py compares first and last
SPELL = 1e-3  # seconds: a clock reading is cheap next to it


@dataclass(frozen=True)
class Timing:
    """Median seconds for one call of each contestant."""

    shape: tuple[int, ...]
    mode: str
    copy: float
    idiom: float
    dropfast: float


def measure(report: Report, repeats: int) -> list[Timing]:
    """Time every shape and mode.

    The contestants take turns, so that a busy moment of the machine strikes them alike.
    """
    report.heading("Speed: float32, one thread, into an array that is there already")
    timings = []
    for shape, (mode, rate, axes) in report.track("timing", [(s, m) for s in SHAPES for m in MODES]):
        turns = [_copy(shape), _idiom(shape, rate, axes), _dropfast(shape, rate, axes)]
        counts = [_calls_in_a_spell(turn) for turn in turns]
        seconds = np.array([[_seconds(turn, n) for turn, n in zip(turns, counts, strict=True)] for _ in range(repeats)])
        timings.append(Timing(shape, mode, *np.median(seconds, axis=0).tolist()))
    return timings


def show(report: Report, timings: list[Timing]) -> None:
    """Print the timings as a table."""
    config = dropfast.show_config(mode="dicts")
    isa = f", {config['isa']}" if config["isa"] else ""
    rows: list[list[str]] = []
    for t in timings:
        n = math.prod(t.shape)
        if rows and t.mode == MODES[0][0]:
            rows.append([])
        rows.append(
            [
                "x".join(map(str, t.shape)),
                t.mode,
                *(_digits(1e9 * s / n, 3) for s in (t.copy, t.idiom, t.dropfast)),
                _digits(n / t.dropfast / 1e9, 2),
                _digits(t.copy / t.dropfast, 2),
                _digits(t.idiom / t.dropfast, 2),
            ]
        )
    report.table(
        [
            "\nshape",
            "\nrate",
            "copy\nns/elem",
            "NumPy\nns/elem",
            "dropfast\nns/elem",
            "10^9\nelem/s",
            "share\nof copy",
            "times\nNumPy",
        ],
        rows,
        title=f"dropfast here: the {config['backend']} backend{isa}",
    )
    report.text(
        "NumPy is rng.random(out=buf, dtype=float32), then x * (buf >= rate) * scale, all into arrays that are there "
        "already. Copy is np.copyto. Medians of one run in which the three took turns."
    )


def _digits(value: float, significant: int) -> str:
    """Return a number with so many significant digits, and never with an exponent."""
    return f"{value:,.{max(0, significant - 1 - math.floor(math.log10(value)))}f}"


def _ones(shape: tuple[int, ...]) -> npt.NDArray[np.float32]:
    # At the start of a page: where two arrays lie in their pages can cost NumPy a factor of six (loads that seem to
    # follow stores to the same place), and chance should not decide that.
    n, page = 4 * math.prod(shape), 4096
    memory = np.empty(n + page, np.uint8)
    start = -memory.ctypes.data % page
    array = memory[start : start + n].view(np.float32).reshape(shape)
    array[...] = 1
    return array


def _copy(shape: tuple[int, ...]) -> Callable[[], object]:
    x, y = _ones(shape), _ones(shape)
    return lambda: np.copyto(y, x)


def _idiom(shape: tuple[int, ...], rate: float, axes: tuple[int, ...]) -> Callable[[], object]:
    # The fastest of several orders of these steps; the generator takes most of the time in all of them.
    x, y = _ones(shape), _ones(shape)
    noise_shape = tuple(1 if axis in axes else n for axis, n in enumerate(shape))
    buf, keep = _ones(noise_shape), np.empty(noise_shape, np.bool_)
    rng, threshold, scale = np.random.default_rng(0), np.float32(rate), np.float32(1 / (1 - rate))

    def elementwise() -> None:
        rng.random(out=buf, dtype=np.float32)
        np.greater_equal(buf, threshold, out=keep)
        np.multiply(x, scale, out=y)
        np.multiply(y, keep, out=y)

    def shared() -> None:  # the scale goes into the small mask
        rng.random(out=buf, dtype=np.float32)
        np.greater_equal(buf, threshold, out=keep)
        np.multiply(keep, scale, out=buf)
        np.multiply(x, buf, out=y)

    return shared if axes else elementwise


def _dropfast(shape: tuple[int, ...], rate: float, axes: tuple[int, ...]) -> Callable[[], object]:
    x, y = _ones(shape), _ones(shape)
    mask = dropfast.Mask(shape, rate, key=0, shared_axes=axes)
    return lambda: mask.apply(x, out=y)


def _seconds(call: Callable[[], object], n: int) -> float:
    began = time.perf_counter()
    for _ in range(n):
        call()
    return (time.perf_counter() - began) / n


def _calls_in_a_spell(call: Callable[[], object]) -> int:
    call()
    return max(1, round(SPELL / _seconds(call, 3)))
