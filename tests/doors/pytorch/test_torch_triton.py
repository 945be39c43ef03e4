"""The kernel for GPUs, on machines without one: its bits by Triton's interpreter, and that Triton compiles it.

In processes of their own, and Triton in a folder of its own beside the environment: it ends a process in which
TensorFlow was imported first, and PyTorch's compiler imports it wherever it is found.
"""

import json
import re
import sys
from pathlib import Path
from typing import Any

import pytest
from processes import run_file, run_python

from dropfast.torch import _devices

TESTS = Path(__file__).parents[2]
TRITON = Path(sys.prefix) / "triton"  # where `make doors-oldest` puts it


def names_in(script: str) -> list[str]:
    return re.findall(r"^def (test_\w+)", (TESTS / script).read_text(), re.MULTILINE)


def outcomes(script: str, **env: str) -> dict[str, str | None]:
    done = run_file(TESTS / script, env={"PYTHONPATH": f"{TESTS}:{TRITON}", **env})
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.fixture(scope="module")
def interpreted() -> Any:
    return outcomes("interpreted.py", TRITON_INTERPRET="1")


@pytest.fixture(scope="module")
def compiled() -> Any:
    return outcomes("compiled_for_gpus.py")


@pytest.mark.parametrize("name", names_in("interpreted.py"))
def test_interpreted(interpreted: Any, name: str) -> None:
    assert interpreted[name] is None, interpreted[name]


@pytest.mark.parametrize("name", names_in("compiled_for_gpus.py"))
def test_compiled_for_gpus(compiled: Any, name: str) -> None:
    assert compiled[name] is None, compiled[name]


def test_triton_is_not_imported_after_tensorflow() -> None:
    code = """
import sys
from dropfast.torch import _devices
assert _devices.has_triton()
sys.modules["tensorflow"] = sys
assert not _devices.has_triton()
"""
    done = run_python(code, env={"PYTHONPATH": str(TRITON)})
    assert done.returncode == 0, done.stderr
    assert not _devices.has_triton()  # it is not in this environment
