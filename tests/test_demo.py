"""The demo runs, on every backend kind that is there, and writes its picture."""

from pathlib import Path

import pytest
from processes import run_module

from dropfast import _backend

BACKENDS = ["native", "numpy"] if _backend.native else ["numpy"]


@pytest.mark.parametrize("kind", BACKENDS)
def test_demo(kind: str, tmp_path: Path) -> None:
    picture = tmp_path / "demo.png"
    done = run_module("dropfast", "demo", "--quick", "--out", str(picture), env={"DROPFAST_BACKEND": kind})
    assert done.returncode == 0, done.stderr
    assert picture.read_bytes().startswith(b"\x89PNG")
    for words in ("per-sample", "shared", "np.copyto", "test accuracy", "The answer", str(picture)):
        assert words in done.stdout


def test_a_picture_that_could_not_be_saved_is_refused_at_once(tmp_path: Path) -> None:
    done = run_module("dropfast", "demo", "--out", str(tmp_path / "missing" / "demo.png"))
    assert done.returncode == 2
    assert "--out must be a .png file in a folder that exists" in done.stderr


def test_info() -> None:
    done = run_module("dropfast", "info")
    assert done.returncode == 0, done.stderr
    for words in ("version", "stream", "backend", "isa", "why", "available", "openmp", "threads"):
        assert words in done.stdout
