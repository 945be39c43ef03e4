"""Fresh interpreters, for what happens once in the life of a process."""

import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

from dropfast import _backend

PATIENCE = 120  # seconds

# Warnings are errors; but where there is no compiler the twin says so once, as it does in the suite itself.
WARNINGS = ["-W", "error", *([] if _backend.native else ["-W", "default:dropfast runs on NumPy:RuntimeWarning"])]


def run_python(code: str, *args: str, env: Mapping[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    """Run code with the dropfast that is under test, and none of the settings that the tests themselves run with."""
    return _run("-c", code, *args, env=env)


def run_module(module: str, *args: str, env: Mapping[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    """Run `python -m module args`."""
    return _run("-m", module, *args, env=env)


def run_file(path: Path, *args: str, env: Mapping[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    """Run a script, which the processes that it starts can import."""
    return _run(str(path), *args, env=env)


def _run(*args: str, env: Mapping[str, str] | None) -> subprocess.CompletedProcess[str]:
    unset = ("DROPFAST_BACKEND", "DROPFAST_ISA", "OMP_NUM_THREADS")
    inherited = {name: value for name, value in os.environ.items() if name not in unset}
    # -P: what lies in the working directory, a checkout for instance, must not be imported.
    return subprocess.run(
        [sys.executable, "-P", *WARNINGS, *args],
        env={**inherited, **(env or {})},
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
