"""The one table of cases: dtypes, rates, sizes, modes, layouts and values, for the tests and the benchmarks alike.

Keys of the tables are the ids that tests show. This module needs NumPy and ml_dtypes, and nothing of dropfast.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

import ml_dtypes
import numpy as np
import numpy.typing as npt

Array: TypeAlias = npt.NDArray[Any]
Shape: TypeAlias = tuple[int, ...]

DTYPES: dict[str, np.dtype[Any]] = {
    "float16": np.dtype(np.float16),
    "bfloat16": np.dtype(ml_dtypes.bfloat16),
    "float32": np.dtype(np.float32),
    "float64": np.dtype(np.float64),
}

RATES = {
    "0": 0.0,
    "2^-33": 2.0**-33,  # a tie: rounds to a threshold of 0, and drops nothing
    "2^-32": 2.0**-32,  # the smallest that drops, and one that needs all 32 planes
    "0.1": 0.1,
    "0.25": 0.25,
    "0.5": 0.5,
    "0.9": 0.9,
    "1-2^-32": 1 - 2.0**-32,  # the largest that keeps
    "1": 1.0,
}

# Around vectors, blocks (128), the shortest run that is drawn and selected in one (4,096), batches of blocks (16,384
# and 65,536) and the smallest call for several threads (2^18).
SIZES = (
    *(0, 1, 2, 3, 7, 63, 64, 65, 127, 128, 129, 1023, 1025, 4095, 4096, 4097),
    *(16383, 16384, 16385, 32769, 65535, 65537, 131073, 262143, 262144, 262145, 300007),
)

PAGE = 4096

# Bytes behind a page. NumPy's own big arrays begin 16 or 32 bytes behind a multiple of 64.
ADDRESSES = (0, 16, 32, 48, 64, 128, 2048, 4032)

# What each mode asks of dropfast for data of a given shape.
MODES: dict[str, Callable[[Shape], dict[str, Any]]] = {
    "per-sample": lambda shape: {},
    "shared-first": lambda shape: {"shared_axes": 0},
    "shared-last": lambda shape: {"shared_axes": -1},
    "shared-middle": lambda shape: {"shared_axes": len(shape) // 2},
    "shared-ends": lambda shape: {"shared_axes": (0, -1)},
    "shared-alternate": lambda shape: {"shared_axes": tuple(range(0, len(shape), 2))},
    "spatial": lambda shape: {"shared_axes": tuple(range(2, len(shape)))},  # N, C, then what is shared
    "shared-all": lambda shape: {"shared_axes": tuple(range(len(shape)))},
    "noise-shape": lambda shape: {"noise_shape": (1, *[None] * (len(shape) - 2), shape[-1])},
}


class Layout(NamedTuple):
    """Where the elements of an array lie in a piece of memory; everything in bytes."""

    offset: int
    strides: tuple[int, ...]
    nbytes: int


def _in_order(shape: Shape, itemsize: int, axes: tuple[int, ...]) -> Layout:
    """Without gaps, the first of `axes` outermost."""
    strides, nbytes = [0] * len(shape), itemsize
    for axis in reversed(axes):
        strides[axis] = nbytes
        nbytes *= shape[axis]
    return Layout(0, tuple(strides), nbytes)


def _c(shape: Shape, itemsize: int) -> Layout:
    return _in_order(shape, itemsize, tuple(range(len(shape))))


def _fortran(shape: Shape, itemsize: int) -> Layout:
    return _in_order(shape, itemsize, tuple(reversed(range(len(shape)))))


def _transposed(shape: Shape, itemsize: int) -> Layout:
    """The last axis outermost, the others in order."""
    axes = tuple(range(len(shape)))
    return _in_order(shape, itemsize, axes[-1:] + axes[:-1])


def _channels_last(shape: Shape, itemsize: int) -> Layout:
    """The second axis innermost, the others in order."""
    axes = tuple(range(len(shape)))
    return _in_order(shape, itemsize, axes[:1] + axes[2:] + axes[1:2])


def _reversed(shape: Shape, itemsize: int) -> Layout:
    _, strides, nbytes = _c(shape, itemsize)
    last = sum((n - 1) * stride for n, stride in zip(shape, strides, strict=True)) if nbytes else 0
    return Layout(last, tuple(-stride for stride in strides), nbytes)


def _strided(shape: Shape, itemsize: int) -> Layout:
    """Every second row, every third column."""
    _, strides, nbytes = _c(tuple(3 * n for n in shape), itemsize)
    return Layout(0, (*(2 * stride for stride in strides[:-1]), *(3 * stride for stride in strides[-1:])), nbytes)


def _mixed(shape: Shape, itemsize: int) -> Layout:
    """The last axis backwards with gaps, the others forwards."""
    _, strides, nbytes = _c((*shape[:-1], *(2 * n for n in shape[-1:])), itemsize)
    last = (shape[-1] - 1) * 2 * itemsize if shape and nbytes else 0
    return Layout(last, (*strides[:-1], *(-2 * stride for stride in strides[-1:])), nbytes)


def _padded(shape: Shape, itemsize: int) -> Layout:
    """Contiguous rows with a gap of five elements behind each."""
    return _c((*shape[:-1], *(n + 5 for n in shape[-1:])), itemsize)


def _unaligned(shape: Shape, itemsize: int) -> Layout:
    _, strides, nbytes = _c(shape, itemsize)
    return Layout(1, strides, nbytes + 1)


def _unaligned_rows(shape: Shape, itemsize: int) -> Layout:
    """Rows a byte apart: each begins at another misalignment."""
    if len(shape) < 2:
        return _unaligned(shape, itemsize)
    row = shape[-1] * itemsize + 1
    return Layout(0, (*(row * stride for stride in _c(shape[:-1], 1).strides), itemsize), row * math.prod(shape[:-1]))


# For x and for out. All of them can be written to, and no two elements overlap.
LAYOUTS: dict[str, Callable[[Shape, int], Layout]] = {
    "C": _c,
    "F": _fortran,
    "transposed": _transposed,
    "channels-last": _channels_last,
    "reversed": _reversed,
    "strided": _strided,
    "mixed": _mixed,
    "padded": _padded,
    "unaligned": _unaligned,
    "unaligned-rows": _unaligned_rows,
}

GUARD = 64  # bytes before and behind: what touches them is out of bounds
SENTINEL = 0xA5


def lay_out(layout: str, shape: Shape, dtype: np.dtype[Any]) -> tuple[Array, npt.NDArray[np.uint8]]:
    """Return an array of the layout, and the memory it lies in, all bytes of which are SENTINEL."""
    offset, strides, nbytes = LAYOUTS[layout](shape, dtype.itemsize)
    memory = np.full(nbytes + 2 * GUARD, SENTINEL, np.uint8)
    return np.ndarray(shape, dtype, buffer=memory.data, offset=GUARD + offset, strides=strides), memory


def at_address(offset: int, shape: Shape, dtype: np.dtype[Any]) -> Array:
    """Return a contiguous array so many bytes behind the start of a page."""
    memory = np.full(math.prod(shape) * dtype.itemsize + 2 * PAGE, SENTINEL, np.uint8)
    return np.ndarray(shape, dtype, memory.data, -memory.ctypes.data % PAGE + offset)


def values(shape: Shape, dtype: np.dtype[Any]) -> Array:
    """Return an array full of trouble: NaN, infinities, zeros, subnormals, overflow, ties and any bits at all.

    The period of the pattern is a prime, so that each value meets each place in a vector and in a block.
    """
    info: Any = ml_dtypes.finfo(dtype)  # type: ignore[no-untyped-call]
    most, tiny, least = float(info.max), float(info.tiny), float(info.smallest_subnormal)
    special = [
        math.nan,
        -math.nan,
        math.inf,
        -math.inf,
        0.0,
        -0.0,
        least,
        -least,
        3 * least,
        tiny - least,
        least - tiny,
    ]
    special += [tiny, -tiny, most, -most, most * 0.75, most * 0.45, -most * 0.95, 1.0, -1.0, 1 / 3, 1 + float(info.eps)]
    rng = np.random.default_rng(20240607)
    bits = rng.integers(0, 256, 64 * dtype.itemsize, dtype=np.uint8).view(dtype)
    with np.errstate(all="ignore"):  # bits may be a signalling NaN
        normal = rng.standard_normal(211 - len(special) - bits.size).astype(dtype)
        pattern = np.concatenate([np.array(special).astype(dtype), bits, normal])
    rng.shuffle(pattern)
    return np.resize(pattern, shape) if math.prod(shape) else np.empty(shape, dtype)
