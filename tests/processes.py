"""Fresh interpreters, for what happens once in the life of a process."""

import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from itertools import takewhile
from pathlib import Path

from dropfast import _backend

PATIENCE = 120  # seconds

# Code that puts kernels of another version into the place of those that are there.
OTHER_KERNELS = """
import ctypes
from dropfast import _backend
new = ctypes.pythonapi.PyCapsule_New
new.restype, new.argtypes = ctypes.py_object, (ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p)
version = ctypes.c_int32(99)
_backend.native._C_API = new(ctypes.addressof(version), b"dropfast._native._C_API", None)
"""

# Warnings are errors; but where there is no compiler the twin says so once, as it does in the suite itself.
WARNINGS = ["-W", "error", *([] if _backend.native else ["-W", "default:dropfast runs on NumPy:RuntimeWarning"])]
# -P: what lies in the working directory, a checkout for instance, must not be imported.
PYTHON = [sys.executable, "-P", *WARNINGS]


def run_python(code: str, *args: str, env: Mapping[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    """Run code with the dropfast that is under test, and none of the settings that the tests themselves run with."""
    return _run("-c", code, *args, env=env)


def run_module(
    module: str, *args: str, env: Mapping[str, str] | None = None, patience: int = PATIENCE
) -> subprocess.CompletedProcess[str]:
    """Run `python -m module args`."""
    return _run("-m", module, *args, env=env, patience=patience)


def run_file(
    path: Path, *args: str, env: Mapping[str, str] | None = None, patience: int = PATIENCE
) -> subprocess.CompletedProcess[str]:
    """Run a script, which the processes that it starts can import."""
    return _run(str(path), *args, env=env, patience=patience)


def run_copy(package: Path, code: str, **env: str) -> subprocess.CompletedProcess[str]:
    """Run code with another copy of the package, where every warning is an error."""
    # Only what is found by path: an editable installation puts a finder of its own before it.
    first = f"""
import sys, warnings
warnings.simplefilter("error")  # without the suite's exception
from importlib.machinery import BuiltinImporter, FrozenImporter, PathFinder
sys.meta_path[:] = [BuiltinImporter, FrozenImporter, PathFinder]
sys.path.insert(0, {str(package.parent)!r})
import dropfast
assert dropfast.__file__.startswith({str(package)!r}), dropfast.__file__
"""
    return run_python(first + code, env=env)


def interrupt_module(
    module: str, *args: str, after: str, env: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Run `python -m module args` until it has printed a line with these words, and then press Ctrl-C."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a SIGINT that is ignored would be in the child
    try:
        pipe, settings = subprocess.PIPE, _settings(env)
        process = subprocess.Popen(
            [*PYTHON, "-m", module, *args], env=settings, stdout=pipe, stderr=pipe, text=True, start_new_session=True
        )
    finally:
        signal.signal(signal.SIGINT, before)
    with process:
        assert process.stdout
        printed = list(takewhile(lambda line: after not in line, process.stdout))
        os.killpg(process.pid, signal.SIGINT)  # the whole group, as a terminal does
        out, err = process.communicate(timeout=PATIENCE)
    return subprocess.CompletedProcess(process.args, process.returncode, "".join(printed) + out, err)


def _run(*args: str, env: Mapping[str, str] | None, patience: int = PATIENCE) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*PYTHON, *args], env=_settings(env), capture_output=True, text=True, timeout=patience, check=False
    )


def _settings(env: Mapping[str, str] | None) -> dict[str, str]:
    unset = ("DROPFAST_BACKEND", "DROPFAST_ISA", "OMP_NUM_THREADS")
    inherited = {name: value for name, value in os.environ.items() if name not in unset}
    return {**inherited, **(env or {})}
