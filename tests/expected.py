"""What must come out, in bits: the stream by a third way, NumPy's arithmetic, and comparison without tolerance.

`uniforms` computes all 32 planes of every block and compares numbers, where the library stops early and compares
bits. It is held to tests/reference.py by test_stream.py. Nothing of dropfast is used but the switch of backends.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt
import reference
from cases import Array, Shape

from dropfast import _backend

#: For tests that start processes or take minutes: where the compiled backend is missing, the twin alone.
DEFAULT_AND_TWIN = sorted({_backend.current(), "numpy"})

BLOCK = 128
PREFIX = 1 << 19  # the first uniforms of a key and draw are asked for over and over, and so kept


@contextmanager
def using(backend: str) -> Iterator[None]:
    """Switch to a backend, and back."""
    before = _backend.current()
    _backend.use(backend)
    try:
        assert _backend.current() == backend
        yield
    finally:
        _backend.use(before)


def _uniforms_of_blocks(key: int, draw: int, blocks: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint32]:
    low, half = np.uint64(reference.MASK32), np.uint64(32)
    m0, m1 = np.uint64(reference.M0), np.uint64(reference.M1)
    words: tuple[Array, Array, Array, Array] = (
        blocks[:, None] & low,
        blocks[:, None] >> half,
        np.array(draw, np.uint64),
        np.arange(32, dtype=np.uint64),
    )
    k0, k1 = key & reference.MASK32, key >> 32
    for _ in range(10):
        c0, c1, c2, c3 = words
        p0, p1 = m0 * c0, m1 * c2
        words = ((p1 >> half) ^ c1 ^ np.uint64(k0), p1 & low, (p0 >> half) ^ c3 ^ np.uint64(k1), p0 & low)
        k0, k1 = (k0 + reference.W0) & reference.MASK32, (k1 + reference.W1) & reference.MASK32
    stacked = np.stack(np.broadcast_arrays(*words), axis=-1).astype("<u4")  # (blocks, planes, 4)
    planes = np.unpackbits(stacked.view(np.uint8), axis=-1, bitorder="little")  # (blocks, planes, 128)
    u = np.packbits(planes, axis=1, bitorder="big").astype(np.uint32)  # (blocks, 4, 128): plane 0 on top
    return np.asarray(u[:, 0] << 24 | u[:, 1] << 16 | u[:, 2] << 8 | u[:, 3], np.uint32)


def _many_blocks(key: int, draw: int, blocks: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint32]:
    pieces = [_uniforms_of_blocks(key, draw, blocks[i : i + 256]) for i in range(0, blocks.size, 256)]
    return np.concatenate(pieces).ravel()


@lru_cache(maxsize=32)
def _first_uniforms(key: int, draw: int, blocks: int) -> npt.NDArray[np.uint32]:
    return _many_blocks(key, draw, np.arange(blocks, dtype=np.uint64))


def uniforms(key: int, draw: int, indices: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint32]:
    """Return U of the elements of these indices, which must ascend."""
    if indices.size == 0:
        return np.empty(indices.shape, np.uint32)
    last = int(indices.max())
    if last < PREFIX:
        # Rounded up to a power of two, so that tests of many sizes share a few arrays.
        return _first_uniforms(key, draw, 1 << (last // BLOCK).bit_length())[indices.astype(np.intp)]
    flat = indices.ravel()
    block = flat >> np.uint64(7)
    first = np.concatenate([[True], block[1:] > block[:-1]])  # of its block
    at = (np.cumsum(first) - 1) * BLOCK + (flat & np.uint64(BLOCK - 1)).astype(np.intp)
    result: npt.NDArray[np.uint32] = _many_blocks(key, draw, block[first])[at]
    return result.reshape(indices.shape)


@lru_cache(maxsize=64)  # some are a second's work, and the same for each rate and backend
def _far_uniforms(key: int, draw: int, noise_shape: Shape, start: Shape, shape: Shape) -> npt.NDArray[np.uint32]:
    return uniforms(key, draw, _indices(noise_shape, start, shape))


def _indices(noise_shape: Shape, start: Shape, shape: Shape) -> npt.NDArray[np.uint64]:
    indices, stride = np.zeros((1,) * len(shape), np.uint64), 1
    for axis in reversed(range(len(shape))):
        if noise_shape[axis] != 1:
            along = np.arange(shape[axis], dtype=np.uint64) * np.uint64(stride) + np.uint64(start[axis] * stride)
            indices = indices + along.reshape((-1,) + (1,) * (len(shape) - 1 - axis))
            stride *= noise_shape[axis]
    return indices


def keep(
    whole: Shape,
    rate: float,
    key: int,
    draw: int = 0,
    *,
    shared_axes: int | tuple[int, ...] = (),
    noise_shape: tuple[int | None, ...] | None = None,
    start: Shape | None = None,
    shape: Shape | None = None,
) -> npt.NDArray[np.bool_]:
    """Return which elements a mask keeps, for data of the shape `whole` or of a window of it; 1 long on shared axes."""
    ndim = len(whole)
    if noise_shape is not None:
        shared = {axis for axis, n in enumerate(noise_shape) if n == 1}
    else:
        shared = {axis % ndim for axis in ((shared_axes,) if isinstance(shared_axes, int) else shared_axes)}
    mask_shape = tuple(1 if axis in shared else n for axis, n in enumerate(whole))
    start = start or (0,) * ndim
    shape = tuple(1 if axis in shared else n for axis, n in enumerate(shape or whole))
    if 0 in shape:
        return np.empty(shape, np.bool_)
    if math.prod(mask_shape) <= PREFIX:
        u = uniforms(key, draw, _indices(mask_shape, start, shape))
    else:
        u = _far_uniforms(key, draw, mask_shape, start, shape)
    return u.astype(np.int64) >= reference.threshold(rate)


def output(x: Array, kept: npt.NDArray[np.bool_], rate: float) -> Array:
    """Return x * scale where kept, +0.0 elsewhere: widened, multiplied and narrowed by NumPy, and then selected."""
    compute: Any = np.float64 if x.dtype == np.float64 else np.float32
    with np.errstate(all="ignore"):
        y = (x.astype(compute) * compute(reference.scale(rate))).astype(x.dtype)
    return np.where(kept, y, np.zeros((), x.dtype))


def bits(array: Array) -> npt.NDArray[Any]:
    """Return the bits of an array of any layout, as unsigned integers."""
    return np.array(array, order="C", copy=True, subok=False).view(f"u{array.itemsize}")


# The lowest bit of these is what tells a quiet NaN from a signalling one.
_QUIET_NAN = {"float16": 0x7E00, "bfloat16": 0x7FC0, "float32": 0x7FC00000, "float64": 0x7FF8000000000000}


def assert_same_bits(got: Array, want: Array) -> None:
    """Fail unless the arrays are equal bit for bit; a NaN may be any quiet NaN (docs/stream.md, section 8)."""
    assert isinstance(got, np.ndarray)
    assert got.dtype == want.dtype
    assert got.shape == want.shape
    a, b = bits(got), bits(want)
    if np.array_equal(a, b):
        return
    quiet = a.dtype.type(_QUIET_NAN[want.dtype.name])
    wrong = (a != b) & ~(np.isnan(want) & (a & quiet == quiet))
    if wrong.any():
        first = tuple(int(i) for i in np.argwhere(wrong)[0]) if wrong.ndim else ()
        raise AssertionError(
            f"{int(wrong.sum())} of {math.prod(want.shape)} elements differ, the first at {first}: "
            f"got {got[first]!r} = {int(a[first]):#x}, expected {want[first]!r} = {int(b[first]):#x}"
        )
