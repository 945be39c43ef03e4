"""The kernel for GPUs, on machines without one: its bits by Triton's interpreter, and that compilers take it."""

import json
import re
from pathlib import Path
from typing import Any

import interpreted
import pytest
import triton
from outcomes import names_of
from processes import run_file
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from dropfast.torch import _triton

TESTS = Path(interpreted.__file__).parent


@pytest.fixture(scope="module")
def outcomes() -> Any:
    env = {"TRITON_INTERPRET": "1", "PYTHONPATH": str(TESTS)}
    done = run_file(Path(interpreted.__file__), env=env)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize("name", names_of(vars(interpreted)))
def test_interpreted(outcomes: Any, name: str) -> None:
    assert outcomes[name] is None, outcomes[name]


NUMBERS = ("rows", "n", "pieces", "k0", "k1", "draw", "threshold", "planes")
PROGRAMS: dict[str, dict[str, Any]] = {
    "float32": {"RUNS": True, "IN_STEP": True, "STEP": 1, "outer": ()},
    "float16": {"RUNS": True, "IN_STEP": True, "STEP": 4, "outer": (("i64", "i64"),)},
    "bfloat16": {"RUNS": True, "IN_STEP": False, "STEP": 4, "outer": (("i32", "i32"), ("i32", "i64"))},
    "float64": {"RUNS": False, "IN_STEP": False, "STEP": 2, "outer": (("i32", "i32"),)},
}


@pytest.mark.filterwarnings("ignore:TRITON_DEFAULT_FP_FUSION is unset")
@pytest.mark.parametrize("dtype", PROGRAMS)
def test_it_compiles_and_keeps_subnormals(dtype: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    constants = {"COLUMNS": 16, "ROWS": 64, **PROGRAMS[dtype]}
    outer = constants.pop("outer")
    pointer = "*" + {"float": "fp", "bfloat": "bf"}[dtype.rstrip("0123456789")] + dtype.lstrip("bfloat")
    types = {"x": pointer, "out": pointer, "outer": outer, "start": "i64", "scale_bits": "i64"}
    types |= dict.fromkeys(NUMBERS, "i32") | dict.fromkeys(constants, "constexpr")
    names = _triton._kernel.arg_names
    aligned = {(names.index(name),): [["tt.divisibility", 16]] for name in ("x", "out", "n")}
    values = {(names.index(name),): value for name, value in constants.items()}
    made = triton.compile(ASTSource(_triton._kernel, types, values, aligned), target=GPUTarget("cuda", 90, 32))
    program = made.asm["ptx"]
    assert re.search(r"mul\.(rn\.)?f(32|64)", program)
    assert "ftz" not in program
    if PROGRAMS[dtype]["IN_STEP"]:  # 16 bytes at a time
        assert "ld.global.v4.b32" in program
        assert "st.global.v4.b32" in program
