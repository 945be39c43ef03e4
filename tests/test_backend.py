"""The promises about the choice of backend: what the environment may ask for, and what happens if it cannot be had."""

import importlib.machinery
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
from processes import run_module, run_python

import dropfast
from dropfast import _backend

AVAILABLE = _backend.available()
ISAS = [name.removeprefix("native:") for name in AVAILABLE if name != "numpy"]
BACKENDS = ["native", "numpy"] if ISAS else ["numpy"]

SAY = "from dropfast import _backend; print(_backend.current())"


def settings() -> list[Any]:
    """The environment, and the backend that it leads to."""
    cases: list[tuple[dict[str, str], str]] = [
        ({}, AVAILABLE[0]),
        ({"DROPFAST_BACKEND": "", "DROPFAST_ISA": ""}, AVAILABLE[0]),
        ({"DROPFAST_BACKEND": "numpy"}, "numpy"),
    ]
    if ISAS:
        cases.append(({"DROPFAST_BACKEND": "native"}, AVAILABLE[0]))
    for isa in ISAS:
        cases.append(({"DROPFAST_ISA": isa}, f"native:{isa}"))
        cases.append(({"DROPFAST_BACKEND": "native", "DROPFAST_ISA": isa}, f"native:{isa}"))
    return [pytest.param(*case, id=",".join(f"{k}={v}" for k, v in case[0].items()) or "unset") for case in cases]


@pytest.mark.parametrize(("env", "chosen"), settings())
def test_environment_is_obeyed(env: dict[str, str], chosen: str) -> None:
    done = run_python(SAY, env=env)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == chosen


def refusals() -> list[Any]:
    """The environment, and the last line of what comes of it."""
    of_backends = f"DROPFAST_BACKEND must be one of {', '.join(BACKENDS)} here, got "
    cases = [
        ({"DROPFAST_BACKEND": bad}, of_backends + repr(bad)) for bad in ("cuda", "Native", "numpy ", "native:avx2")
    ]
    cases.append(
        (
            {"DROPFAST_BACKEND": "numpy", "DROPFAST_ISA": "baseline"},
            "DROPFAST_ISA must be unset with the numpy backend, got 'baseline'",
        )
    )
    if ISAS:
        of_isas = f"DROPFAST_ISA must be one of {', '.join(ISAS)} here, got "
        cases += [({"DROPFAST_ISA": bad}, of_isas + repr(bad)) for bad in ("sse9", "AVX2", "numpy")]
        missing = next(isa for isa in ("neon", "avx512") if isa not in ISAS)  # known, but of another machine
        cases.append(({"DROPFAST_BACKEND": "native", "DROPFAST_ISA": missing}, of_isas + repr(missing)))
    else:
        cases.append(({"DROPFAST_BACKEND": "native"}, of_backends + "'native'"))
        cases.append(({"DROPFAST_ISA": "avx2"}, "DROPFAST_ISA must be unset with the numpy backend, got 'avx2'"))
    return [pytest.param(*case, id=",".join(f"{k}={v}" for k, v in case[0].items())) for case in cases]


@pytest.mark.parametrize(("env", "message"), refusals())
def test_environment_that_cannot_be_obeyed(env: dict[str, str], message: str) -> None:
    done = run_python(SAY, env=env)
    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr.splitlines()[-1] == f"ValueError: {message}"


# ---- a native module that is missing or broken ---------------------------------------------------


@pytest.fixture
def package(tmp_path: Path) -> Path:
    """A copy of the package without its native module; the tests put another in its place."""
    installed = Path(dropfast.__file__).parent
    copy = tmp_path / "dropfast"
    shutil.copytree(installed, copy, ignore=shutil.ignore_patterns("_native.*", "__pycache__"))
    return copy


def run_copy(package: Path, code: str, **env: str) -> Any:
    # Only what is found by path: an editable installation puts a finder of its own before it.
    first = f"""
import sys
from importlib.machinery import BuiltinImporter, FrozenImporter, PathFinder
sys.meta_path[:] = [BuiltinImporter, FrozenImporter, PathFinder]
sys.path.insert(0, {str(package.parent)!r})
import dropfast
assert dropfast.__file__.startswith({str(package)!r}), dropfast.__file__
"""
    return run_python(first + code, env=env)


def test_missing_native_module_gives_way_to_the_twin(package: Path) -> None:
    code = """
import numpy as np
from dropfast import _backend
assert _backend.native is None
assert _backend.available() == ("numpy",)
assert dropfast.show_config(mode="dicts")["openmp"] is False
print(_backend.current(), dropfast.Mask(64, 0.5, key=0).packed().tobytes().hex())
print(dropfast.Mask(64, 0.5, key=0).apply(np.ones(64))[:8].tolist())
"""
    done = run_copy(package, code)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split("\n")[0] == "numpy d5e827668dc569e1"
    assert done.stdout.split("\n")[1] == "[2.0, 0.0, 2.0, 0.0, 2.0, 0.0, 2.0, 2.0]"


def test_missing_native_module_cannot_be_asked_for(package: Path) -> None:
    done = run_copy(package, "", DROPFAST_BACKEND="native")
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == "ValueError: DROPFAST_BACKEND must be one of numpy here, got 'native'"
    done = run_copy(package, "", DROPFAST_ISA="avx2")
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == "ValueError: DROPFAST_ISA must be unset with the numpy backend, got 'avx2'"


@pytest.mark.parametrize("content", [b"", b"garbage\n" * 100], ids=["empty", "garbage"])
@pytest.mark.parametrize("asked", ["", "native", "numpy"], ids=["unset", "native", "numpy"])
def test_broken_native_module_is_loud(package: Path, content: bytes, asked: str) -> None:
    (package / f"_native{importlib.machinery.EXTENSION_SUFFIXES[0]}").write_bytes(content)
    done = run_copy(package, "", DROPFAST_BACKEND=asked)
    assert done.returncode == 1
    assert re.search(r"^ImportError: .*_native", done.stderr, re.MULTILINE), done.stderr


def test_native_module_that_lacks_something_is_loud(package: Path) -> None:
    """A ModuleNotFoundError for something else is a broken installation too."""
    (package / "_native.py").write_text("import dropfast_is_looking_for_this\n")
    done = run_copy(package, "")
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == "ModuleNotFoundError: No module named 'dropfast_is_looking_for_this'"


def test_real_native_module_in_the_copy_works(package: Path) -> None:
    """What the tests above rely on: the copy is complete but for the module."""
    if _backend.native is not None:
        shutil.copy(str(_backend.native.__file__), package)  # type: ignore[attr-defined]
    done = run_copy(package, SAY)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == AVAILABLE[0]


# ---- python -m dropfast --------------------------------------------------------------------------


@pytest.mark.parametrize("name", AVAILABLE)
def test_info(name: str) -> None:
    backend, _, isa = name.partition(":")
    env = {"DROPFAST_BACKEND": backend, "DROPFAST_ISA": isa, "OMP_NUM_THREADS": "2"}
    done = run_module("dropfast", "info", env=env)
    assert done.returncode == 0, done.stderr
    lines = dict(line.strip().split(": ", 1) for line in done.stdout.splitlines() if ": " in line)
    assert lines["version"] == dropfast.__version__
    assert lines["stream"] == "v1"
    assert lines["backend"] == backend
    assert lines["isa"] == (isa or "None")
    assert lines["available"] == ", ".join(AVAILABLE)
    openmp = dropfast.show_config(mode="dicts")["openmp"]
    assert lines["openmp"] == str(openmp)
    assert lines["threads"] == ("2" if openmp and isa else "1")


def test_unknown_command() -> None:
    done = run_module("dropfast", "nonsense")
    assert done.returncode != 0
    assert "nonsense" in done.stderr
