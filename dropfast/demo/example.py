"""The question's own example: a batch of 4 samples with 10 units, before dropout and after it, in both modes."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from rich.text import Text

import dropfast
from dropfast._report import Report

RATE = 0.5
SEED = 0


def show(report: Report) -> None:
    """Print the batch, and what per-sample and shared dropout make of it."""
    report.heading("The question")
    report.text(
        "In mini-batch training, should dropout drop the same units for the whole batch, or others for each sample?"
    )
    report.line()
    samples, units = np.arange(1, 5, dtype=np.float32), np.arange(10, dtype=np.float32)
    x = samples[:, None] + units / 10
    _table(report, "before: x, 4 samples with 10 units", x, np.ones(x.shape, np.bool_))
    for title, axes in (
        (f"per-sample: dropout(x, {RATE}, rng={SEED})", ()),
        (f"shared: dropout(x, {RATE}, shared_axes=0, rng={SEED})", 0),
    ):
        y = dropfast.dropout(x, RATE, shared_axes=axes, rng=SEED)
        _table(report, title, y, y != 0)
    report.text(
        "A dot is a dropped unit, 0 from here on. The kept ones are doubled, so that the mean stays. Per-sample: every "
        "row loses units of its own. Shared: one draw for the batch, and whole columns go."
    )


def _table(report: Report, title: str, x: npt.NDArray[Any], keep: npt.NDArray[np.bool_]) -> None:
    rows = []
    for i, row in enumerate(zip(x, keep, strict=True)):
        cells = [Text(f"{value:.1f}") if kept else Text("  .", style="dim") for value, kept in zip(*row, strict=True)]
        rows.append([Text(f"sample {i + 1}"), *cells])
    report.table(["unit", *map(str, range(x.shape[1]))], rows, title=title)
