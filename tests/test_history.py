"""The benchmarks' history: what is saved comes back, and is shown beside the same cases, measured again."""

import re
import sys
from pathlib import Path

import pytest
from processes import run_file

from dropfast._report import Report
from dropfast.bench.case import Case

sys.path.append(str(Path(__file__).parents[1] / "benchmarks"))
import history

PROGRAM = Path(history.__file__)
SMALL = Case((4, 10), 0.5)
BACKWARD = Case((4, 10), 0.1, "bfloat16", backward=True)
MACHINE = {"cpu": "a processor", "dropfast": {"version": "1", "backend": "native", "isa": "avx2", "threads": 1}}


def run(**times: tuple[float, ...]) -> history.Run:
    return history.Run("2026-01-02 03:04:05", "abc-dirty", MACHINE, {(SMALL, name): t for name, t in times.items()})


def test_what_is_saved_comes_back(tmp_path: Path) -> None:
    made = history.Run("2026-01-02 03:04:05", "abc", MACHINE, {(SMALL, "a"): (1.5, 2.0), (BACKWARD, "b"): (0.125,)})
    path = history.save(made, tmp_path / "new")
    assert history.load(path) == made
    assert history.saved(tmp_path / "new") == [path]


def test_the_worst_comes_first_and_what_is_beyond_noise_is_marked() -> None:
    before = run(equal=(1.0, 1.1), better=(1.0, 1.2), worse=(1.0, 1.1), gone=(1.0,))
    now = run(equal=(1.0, 1.1), better=(0.8, 0.9), worse=(1.2, 1.3), noisy=(9.0,))
    found = [(change.contender, change.verdict) for change in history.changes(before, now)]
    assert found == [("worse", "slower"), ("equal", ""), ("better", "faster")]


def test_another_machine_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    before = run(dropfast=(1.0, 1.1))
    other = history.Run(before.made, before.commit, MACHINE | {"cpu": "another"}, before.times)
    history.show(Report(), before, before)
    assert "not the same machine" not in capsys.readouterr().out
    history.show(Report(), before, other)
    assert "not the same machine" in capsys.readouterr().out


def test_the_cases_of_a_saved_run_are_measured_again(tmp_path: Path) -> None:
    cases = [SMALL, BACKWARD]
    path = history.save(history.measured(Report(), cases, passes=2), tmp_path)
    done = run_file(PROGRAM, "compare", "--folder", str(tmp_path))
    assert done.returncode == 0, done.stderr
    for case in cases:
        for contender in ("out=", "no out="):
            assert re.search(rf"^ {case.name} +{contender} +[\d.]+ +[\d.]+ +[+-][\d.]+ %", done.stdout, re.MULTILINE)
    assert "Of 4, " in done.stdout
    assert (tmp_path / "history.png").read_bytes().startswith(b"\x89PNG")
    assert history.saved(tmp_path) == [path]  # comparing saves nothing


def test_nothing_was_saved(tmp_path: Path) -> None:
    done = run_file(PROGRAM, "compare", "--folder", str(tmp_path))
    assert done.returncode == 2
    assert f"no run was saved in {tmp_path}" in done.stderr
