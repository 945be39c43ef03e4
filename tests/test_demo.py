"""The demo runs, on every backend kind that is there, and writes its picture."""

import re
from pathlib import Path

import numpy as np
import pytest
from processes import run_module

from dropfast import _backend
from dropfast.demo import variance

BACKENDS = ["native", "numpy"] if _backend.native else ["numpy"]


@pytest.mark.parametrize("kind", BACKENDS)
def test_demo(kind: str, tmp_path: Path) -> None:
    picture = tmp_path / "demo.png"
    done = run_module("dropfast", "demo", "--quick", "--out", str(picture), env={"DROPFAST_BACKEND": kind})
    assert done.returncode == 0, done.stderr
    assert picture.read_bytes().startswith(b"\x89PNG")
    for words in ("per-sample", "shared", "np.copyto", "test accuracy", "The answer", str(picture)):
        assert words in done.stdout
    rows = re.findall(r"^ (\d+)((?: +[\d.]+ \+- [\d.]+){4}) +[\d.]+ *$", done.stdout, re.MULTILINE)
    assert [int(m) for m, _ in rows] == list(variance.SIZES_OF_BATCH)  # the formulas with their errors too


def test_the_formulas_own_error_counts() -> None:
    spread = np.array([[-1.0], [1.0]])  # whose standard error is 1
    sizes = np.array(variance.SIZES_OF_BATCH, np.float64)
    noise = variance.Noise(
        samples=dict.fromkeys(variance.COMPARED, 10 / sizes + 3 * spread / sizes),
        v=4 * spread[:, 0],
        c=np.zeros(2),
        data=0.0,
        means={},
    )
    for mode in variance.COMPARED:
        for (value, error), wanted in ((noise.measured(mode), (10, 3)), (noise.predicted(mode, sizes), (0, 4))):
            np.testing.assert_allclose(value * sizes, wanted[0], atol=1e-12)
            np.testing.assert_allclose(error * sizes, wanted[1])
    assert noise.worst() == pytest.approx(10 / 5)


def test_info() -> None:
    done = run_module("dropfast", "info")
    assert done.returncode == 0, done.stderr
    for words in ("version", "stream", "backend", "isa", "why", "available", "openmp", "threads"):
        assert words in done.stdout
