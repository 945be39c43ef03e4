"""The promise that no byte outside of x and out is touched: right before and behind them memory is forbidden."""

import ctypes
import mmap
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cases import DTYPES, Array, Shape, values
from expected import assert_same_bits
from processes import run_python

import dropfast

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="there is no mprotect")

PAGE = mmap.PAGESIZE
ROOM = 8 * PAGE
# Every tail of a vector and of a word of bits, and what begins and ends around a block.
LENGTHS = (*range(1, 131), 191, 192, 193, 255, 256, 257, 1023, 1024, 1025)


@contextmanager
def walled() -> Iterator[int]:
    """Give the address of ROOM bytes between two pages, the touch of which ends the process."""
    memory = mmap.mmap(-1, ROOM + 2 * PAGE)
    begin = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    libc = ctypes.CDLL(None, use_errno=True)
    for wall in (begin, begin + PAGE + ROOM):
        assert libc.mprotect(ctypes.c_void_p(wall), ctypes.c_size_t(PAGE), 0) == 0, ctypes.get_errno()
    yield begin + PAGE
    for wall in (begin, begin + PAGE + ROOM):
        libc.mprotect(ctypes.c_void_p(wall), ctypes.c_size_t(PAGE), mmap.PROT_READ | mmap.PROT_WRITE)


def array_at(address: int, shape: Shape, dtype: np.dtype[np.generic], row: int) -> Array:
    """Return an array on foreign memory, its rows so many bytes apart."""
    nbytes = (shape[0] - 1) * row + shape[1] * dtype.itemsize
    memory: Any = (ctypes.c_char * nbytes).from_address(address)
    return np.ndarray(shape, dtype, buffer=memory, strides=(row, dtype.itemsize))


@pytest.mark.parametrize("at", ["first-byte", "last-byte"])
@pytest.mark.parametrize("mode", ["per-sample", "shared", "spatial", "strided"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_walls(backend: str, dtype: str, mode: str, at: str) -> None:
    of = DTYPES[dtype]
    shared_axes = {"shared": 0, "spatial": 1}.get(mode, ())
    with walled() as x_room, walled() as out_room:
        for n in LENGTHS:
            # Three rows, at another misalignment for each length; `strided`: backwards.
            shape, row = (3, n), n * of.itemsize + n % 4 * (mode == "per-sample")
            free = ROOM - 2 * row - n * of.itemsize
            offset = 0 if at == "first-byte" else free
            x, out = (array_at(room + offset, shape, of, row) for room in (x_room, out_room))
            x[...] = values(shape, of)
            mask = dropfast.Mask((3, 2 * n), 0.3, key=n, shared_axes=shared_axes).window((0, n // 2), shape)
            expected = mask.apply(x.copy())
            if mode == "strided":
                mask.apply(x[:, ::-1].copy()[:, ::-1], out=out)
            else:
                mask.apply(x, out=out)
            assert_same_bits(out, expected)
            assert_same_bits(mask.apply(x, out=x), expected)  # in place


def test_a_wall_is_a_wall() -> None:
    """What would be touched beyond it ends the process; here a kernel does that, in a process of its own."""
    script = """
import sys
sys.path[:0] = [sys.argv[1]]
import numpy as np
import dropfast
from test_guard_pages import ROOM, array_at, walled
with walled() as room:
    x = array_at(room + ROOM - 400, (1, 101), np.dtype(np.float32), 404)
    print("reached", flush=True)
    dropfast.Mask(x.shape, 0, key=1).apply(x)  # AVX-512 does not look at what is dropped
    print("survived")
"""
    done = run_python(script, str(Path(__file__).parent))
    assert done.stdout.split() == ["reached"], done.stderr
    assert done.returncode < 0
