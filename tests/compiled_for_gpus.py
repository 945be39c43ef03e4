"""What Triton makes of the kernel for GPUs, for which it needs none: a script, as `interpreted.py`."""

import json
import re
import tempfile
import warnings
from typing import Any

import triton
from outcomes import outcomes
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from dropfast.torch import _triton

NUMBERS = ("rows", "n", "pieces", "k0", "k1", "draw", "threshold", "planes")


def program(pointer: str, outer: tuple[Any, ...], **constants: Any) -> str:
    """The assembly of NVIDIA's."""
    constants |= {"COLUMNS": 16, "ROWS": 64}
    types = {"x": pointer, "out": pointer, "outer": outer, "start": "i64", "scale_bits": "i64"}
    types |= dict.fromkeys(NUMBERS, "i32") | dict.fromkeys(constants, "constexpr")
    names = _triton._kernel.arg_names
    aligned = {(names.index(name),): [["tt.divisibility", 16]] for name in ("x", "out", "n")}
    values = {(names.index(name),): value for name, value in constants.items()}
    made = triton.compile(ASTSource(_triton._kernel, types, values, aligned), target=GPUTarget("cuda", 90, 32))
    text: str = made.asm["ptx"]
    assert re.search(r"mul\.(rn\.)?f(32|64)", text)
    assert "ftz" not in text  # subnormals stay
    if constants["IN_STEP"]:  # 16 bytes at a time
        assert "ld.global.v4.b32" in text
        assert "st.global.v4.b32" in text
    return text


def test_float32() -> None:
    program("*fp32", (), RUNS=True, IN_STEP=True, STEP=1)


def test_float16() -> None:
    program("*fp16", (("i64", "i64"),), RUNS=True, IN_STEP=True, STEP=4)


def test_bfloat16() -> None:
    program("*bf16", (("i32", "i32"), ("i32", "i64")), RUNS=True, IN_STEP=False, STEP=4)


def test_float64() -> None:
    program("*fp64", (("i32", "i32"),), RUNS=False, IN_STEP=False, STEP=2)


if __name__ == "__main__":
    warnings.filterwarnings("ignore", "TRITON_DEFAULT_FP_FUSION is unset")
    with tempfile.TemporaryDirectory() as folder:
        triton.knobs.cache.dir = folder
        print(json.dumps(outcomes(globals())))
