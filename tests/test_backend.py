"""The promises about the choice of backend: what the environment may ask for, and what happens if it cannot be had."""

import importlib.machinery
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
from processes import run_copy, run_module, run_python

import dropfast
from dropfast import _backend

AVAILABLE = _backend.available()
ISAS = [name.removeprefix("native:") for name in AVAILABLE if name != "numpy"]
BACKENDS = ["native", "numpy"] if ISAS else ["numpy"]

SAY = "from dropfast import _backend; print(_backend.current())"
SAY_WHY = f"{SAY}; print(_backend.why)"
NOT_COMPILED = (
    "dropfast was installed without its compiled module; "
    "once there is a C++17 compiler (GCC or Clang), install it again with --force-reinstall --no-cache-dir"
)


def settings() -> list[Any]:
    """The environment, the backend that it leads to, and why."""
    by_default = "the best of this machine" if ISAS else NOT_COMPILED
    asked = "asked for by "
    cases: list[tuple[dict[str, str], str, str]] = [
        ({}, AVAILABLE[0], by_default),
        ({"DROPFAST_BACKEND": "", "DROPFAST_ISA": ""}, AVAILABLE[0], by_default),
        ({"DROPFAST_BACKEND": "numpy"}, "numpy", f"{asked}DROPFAST_BACKEND"),
    ]
    if ISAS:
        cases.append(({"DROPFAST_BACKEND": "native"}, AVAILABLE[0], f"{asked}DROPFAST_BACKEND"))
    for isa in ISAS:
        both = {"DROPFAST_BACKEND": "native", "DROPFAST_ISA": isa}
        cases.append(({"DROPFAST_ISA": isa}, f"native:{isa}", f"{asked}DROPFAST_ISA"))
        cases.append((both, f"native:{isa}", f"{asked}DROPFAST_BACKEND and DROPFAST_ISA"))
    return [pytest.param(*case, id=",".join(f"{k}={v}" for k, v in case[0].items()) or "unset") for case in cases]


@pytest.mark.parametrize(("env", "chosen", "why"), settings())
def test_environment_is_obeyed(env: dict[str, str], chosen: str, why: str) -> None:
    done = run_python(SAY_WHY, env=env)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [chosen, why]


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


def test_missing_native_module_gives_way_to_the_twin(package: Path) -> None:
    code = """
import warnings
import numpy as np
warnings.simplefilter("ignore")  # of the twin: see below
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


# ---- the twin does not come silently -------------------------------------------------------------

FIRST_CALLS = {
    "dropout": "dropfast.dropout(np.ones(64))",
    "Mask.apply": "dropfast.Mask(64, 0.5, key=0).apply(np.ones(64))",
    "Mask.keep": "dropfast.Mask(64, 0.5, key=0).keep()",
    "Mask.compress": "dropfast.Mask(64, 0.5, key=0).compress(np.ones(64))",
    "Mask.compress-empty": "dropfast.Mask(0, 0.5, key=0).compress(np.ones(0))",  # which looks at no bits
    "Dropout": "dropfast.Dropout(0.5)(np.ones(64))",
}
RECORD = """
import threading, warnings
import numpy as np
dropfast.show_config(mode="dicts")  # an error if it warned
with warnings.catch_warnings(record=True) as said:
    warnings.simplefilter("always")
    exec(compile({call!r}, "the user's file", "exec"))
    threads = [threading.Thread(target=dropfast.dropout, args=(np.ones(64),)) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    dropfast.Mask(64, 0.5, key=0).packed()
for one in said:
    print(one.category.__name__, one.filename, one.message, sep="|")
print(dropfast.show_config(mode="dicts")["why"])
"""


@pytest.mark.parametrize("call", FIRST_CALLS.values(), ids=FIRST_CALLS)
def test_the_twin_says_once_that_it_runs_and_why(package: Path, call: str) -> None:
    done = run_copy(package, RECORD.format(call=call))
    assert done.returncode == 0, done.stderr
    (said, why) = done.stdout.splitlines()
    assert why == NOT_COMPILED
    assert said == (
        f"RuntimeWarning|the user's file|dropfast runs on NumPy, with the same bits but many times slower: {why}. "
        "DROPFAST_BACKEND=numpy ends this warning."
    )


def test_the_twin_says_it_once_to_threads_that_call_at_once(package: Path) -> None:
    """Both have found the backend that was there before the first of them was through."""
    code = """
import warnings
import numpy as np
from dropfast import _backend
mask, found = dropfast.Mask(64, 0.5, key=0), [_backend.active] * 2
with warnings.catch_warnings(record=True) as said:
    warnings.simplefilter("always")
    for backend in found:
        out = np.empty(8, np.uint8)
        backend.packed(out, mask._recipe)
        print(out.tobytes().hex())
print(len(said))
"""
    done = run_copy(package, code)
    assert done.stdout.split() == ["d5e827668dc569e1"] * 2 + ["1"], done.stderr


def test_the_twin_of_a_source_tree_says_which(package: Path) -> None:
    (package.parent / "csrc").mkdir()
    (package.parent / "csrc" / "module.cpp").touch()
    done = run_copy(package, RECORD.format(call="dropfast.dropout(np.ones(64))"))
    assert done.returncode == 0, done.stderr
    (said, why) = done.stdout.splitlines()
    assert why == (
        f"dropfast was found in the source tree {package.parent}, where nothing is compiled; "
        "install it, and start Python in another folder or as python -P"
    )
    assert why in said


def test_a_twin_that_is_an_error_is_one_once(package: Path) -> None:
    code = """
import numpy as np
layer = dropfast.Dropout(0.5, rng=0)
try:
    layer(np.ones(64))
except RuntimeWarning:
    print(layer.draw)
layer(np.ones(64))
print(layer.draw)
"""
    done = run_copy(package, code)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["0", "1"]


@pytest.mark.parametrize("env", [{}, {"DROPFAST_BACKEND": "numpy"}], ids=["by-a-call", "by-the-environment"])
def test_a_twin_that_was_asked_for_says_nothing(package: Path, env: dict[str, str]) -> None:
    use = "" if env else "from dropfast import _backend; _backend.use('numpy')\n"
    done = run_copy(package, f"import numpy as np\n{use}{FIRST_CALLS['dropout']}", **env)  # where a warning is an error
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""


@pytest.mark.skipif(_backend.native is None, reason="the compiled backend is missing")
@pytest.mark.parametrize("call", FIRST_CALLS.values(), ids=FIRST_CALLS)
def test_the_compiled_backend_says_nothing(call: str) -> None:
    done = run_python(f"import numpy as np, dropfast; {call}")
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""


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
    assert lines["why"] == f"asked for by DROPFAST_BACKEND{' and DROPFAST_ISA' if isa else ''}"
    assert lines["available"] == ", ".join(AVAILABLE)
    openmp = dropfast.show_config(mode="dicts")["openmp"]
    assert lines["openmp"] == str(openmp)
    assert lines["threading"] == (("openmp" if openmp else "pool") if isa else "None")
    assert lines["threads"] == ("2" if isa else "1")


def test_unknown_command() -> None:
    done = run_module("dropfast", "nonsense")
    assert done.returncode != 0
    assert "nonsense" in done.stderr
