"""The benchmark of the command line runs, checks everyone's results, and writes its measurements and its picture."""

import json
import re
import time
from pathlib import Path

import numpy as np
import pytest
from cases import PAGE
from processes import run_module

from dropfast.bench.case import Case
from dropfast.bench.contender import Run
from dropfast.bench.contenders import CONTENDERS, Copy, Dropfast
from dropfast.bench.measure import FEWEST, SLOW, measure
from dropfast.bench.peers import TensorFlow

OURS = [contender for contender in CONTENDERS if not contender.peer]


def test_bench(tmp_path: Path) -> None:
    picture, measurements = tmp_path / "bench.png", tmp_path / "bench.json"
    done = run_module("dropfast", "bench", "--quick", "--no-peers", "--plot", str(picture), "--json", str(measurements))
    assert done.returncode == 0, done.stderr
    assert picture.read_bytes().startswith(b"\x89PNG")
    for words in ("share of np.copyto", "times NumPy, tuned", "1024x1024", str(picture), str(measurements)):
        assert words in done.stdout
    (missing,) = re.findall("^not installed, so not measured: (.*)$", done.stdout, re.MULTILINE)
    content = json.loads(measurements.read_text())
    assert missing == (", ".join(content["machine"]["not installed"]) or "none")
    assert not any("," in name for name in content["machine"]["not installed"])
    assert {timing["contender"] for timing in content["timings"]} == {contender.name for contender in OURS}
    assert all(timing["median"] > 0 for timing in content["timings"])


def test_arrays_begin_as_numpys_do() -> None:
    for array in Case((64, 1024), 0.5, backward=True).arrays():
        assert array.ctypes.data % PAGE == 16


@pytest.mark.parametrize("wrong", ["shape", "rate", "scale", "shared", "backward"])
def test_a_wrong_result_is_not_timed(wrong: str) -> None:
    case = Case((64, 1024), 0.5, shared=wrong == "shared", backward=wrong == "backward")
    y, dx = Dropfast().prepare(Case(case.shape, case.rate, shared=case.shared, backward=True))()
    other = dx.copy()  # drops one more
    other.flat[np.flatnonzero(dx)[0]] = 0
    returned = {
        "shape": y[:32],
        "rate": Dropfast().prepare(Case(case.shape, 0.4))(),
        "scale": y * np.float32(1.001),
        "shared": Dropfast().prepare(Case(case.shape, case.rate))(),
        "backward": (y, other),
    }[wrong]
    Dropfast().check(case, (y, dx) if case.backward else y)  # that one is right
    with pytest.raises(AssertionError, match="64x1024"):
        Dropfast().check(case, returned)


def test_a_wrong_copy_is_not_timed() -> None:
    case = Case((64, 1024), 0.5)
    with pytest.raises(AssertionError, match=r"64x1024.*: not a copy"):
        Copy().check(case, case.x() + 1)


def test_a_version_is_that_of_the_first_package_that_is_installed() -> None:
    contender = TensorFlow("somebody", xla=False)
    contender.distributions = "a-package-that-nobody-has", "numpy"
    assert contender.version() == np.__version__
    contender.distributions = "a-package-that-nobody-has", "another-one"
    assert contender.version() is None


class Slow(Copy):
    def prepare(self, case: Case) -> Run:
        run = super().prepare(case)

        def slow() -> object:
            time.sleep(2 * SLOW)
            return run()

        return slow


def test_a_slow_contender_sits_out_most_rounds() -> None:
    (timing,) = measure(Case((64, 1024), 0.5), [Slow()], rounds=9)
    assert len(timing.seconds) == FEWEST
    assert min(timing.seconds) >= SLOW
