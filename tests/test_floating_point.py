"""The promise that the floating-point mode of the calling thread does not change the bits, and stays as it is."""

import ctypes
import platform
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import pytest
from cases import DTYPES, values
from processes import run_python

import dropfast
from dropfast._backend import on_threads

LIBM = ctypes.CDLL("ucrtbase" if sys.platform == "win32" else None)
SHAPES = {"small": (1000,), "parallel": (300, 1001)}
FLUSH_TO_ZERO, DENORMALS_ARE_ZERO = 0x8000, 0x40  # bits of MXCSR
FE_UPWARD = {"x86_64": 0x800, "aarch64": 0x400000, "arm64": 0x400000}.get(platform.machine())

x86 = pytest.mark.skipif(
    (sys.platform, platform.machine()) != ("linux", "x86_64"), reason="MXCSR is x86's, and is looked for as in glibc"
)


def environment() -> bytes:
    fenv = ctypes.create_string_buffer(64)
    assert LIBM.fegetenv(fenv) == 0
    return fenv.raw


@contextmanager
def mxcsr(bits: int) -> Iterator[None]:
    """Set bits of the mode of this thread: MXCSR follows the 28 bytes of the x87 in glibc's fenv_t."""
    before = environment()
    changed = bytearray(before)
    changed[28:32] = (int.from_bytes(before[28:32], "little") | bits).to_bytes(4, "little")
    assert LIBM.fesetenv(bytes(changed)) == 0
    try:
        yield
    finally:
        assert LIBM.fesetenv(before) == 0


@contextmanager
def rounding_up() -> Iterator[None]:
    before = LIBM.fegetround()
    assert LIBM.fesetround(FE_UPWARD) == 0
    try:
        yield
    finally:
        assert LIBM.fesetround(before) == 0


@x86
@pytest.mark.parametrize("threads", [1, 2], ids=lambda n: f"threads={n}")
@pytest.mark.parametrize("size", SHAPES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_subnormals_are_not_flushed(backend: str, dtype: str, size: str, threads: int) -> None:
    x = values(SHAPES[size], DTYPES[dtype])
    mask = dropfast.Mask(x.shape, 0.1, key=5)
    with on_threads(threads):
        plain = mask.apply(x).tobytes()
        with mxcsr(FLUSH_TO_ZERO | DENORMALS_ARE_ZERO):
            flushed = mask.apply(x).tobytes()
    assert flushed == plain


@pytest.mark.skipif(FE_UPWARD is None, reason="the constant is not known here")
@pytest.mark.parametrize("size", SHAPES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_rounding_is_to_nearest(backend: str, dtype: str, size: str) -> None:
    x = values(SHAPES[size], DTYPES[dtype])
    mask = dropfast.Mask(x.shape, 0.1, key=5)
    plain = mask.apply(x).tobytes()
    with rounding_up():
        up = mask.apply(x).tobytes()
    assert up == plain


@x86
@pytest.mark.parametrize("size", SHAPES)
def test_mode_and_flags_stay_as_they_are(backend: str, size: str) -> None:
    x = values(SHAPES[size], DTYPES["float32"])  # overflows, underflows, and is inexact
    out, mask = np.empty_like(x), dropfast.Mask(x.shape, 0.1, key=5)
    mask.apply(x, out=out)
    for bits in (0, FLUSH_TO_ZERO):
        with mxcsr(bits):
            assert LIBM.feclearexcept(0x3F) == 0
            before = environment()[28:32]
            mask.apply(x, out=out)
            assert environment()[28:32] == before


def test_the_twin_computes_without_a_c_library_to_ask() -> None:
    """Python may not show it, as where all is linked statically: the mode is then left as it is."""
    code = """
import ctypes
import numpy as np
def hidden(*args):
    raise OSError("none here")
ctypes.CDLL = hidden
import dropfast
print(dropfast.Mask(1000, 0.1, key=5).apply(np.arange(1000, dtype=np.float32)).tobytes().hex())
"""
    done = run_python(code, env={"DROPFAST_BACKEND": "numpy"})
    assert done.returncode == 0, done.stderr
    want = dropfast.Mask(1000, 0.1, key=5).apply(np.arange(1000, dtype=np.float32))
    assert done.stdout.strip() == want.tobytes().hex()
