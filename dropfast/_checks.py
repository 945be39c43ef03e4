"""What is legal: the one place that looks at arguments and finds the words for what is wrong with them.

The result of the checks is a recipe, the few numbers that both backends work from.
"""

from __future__ import annotations

import functools
import math
import operator
import os
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from typing import Any, NamedTuple, SupportsIndex, TypeAlias, TypeVar

import numpy as np
import numpy.typing as npt
from numpy.random import (
    MT19937,
    PCG64,
    PCG64DXSM,
    SFC64,
    BitGenerator,
    Generator,
    Philox,
    RandomState,
    SeedSequence,
    default_rng,
)

from dropfast import _doors

#: (shape of x, index strides, index of the first element, key, draw, threshold). Element (i, j, ...) of x has the index
#: ``start + i * strides[0] + j * strides[1] + ...`` in the mask's whole shape; the stride is 0 on shared axes.
Recipe: TypeAlias = tuple[tuple[int, ...], tuple[int, ...], int, int, int, int]

#: What the elements of an array are, to type checkers. To them ml_dtypes' bfloat16 may be any scalar: such arrays are
#: NDArray[Any], for what takes just any scalar would take integers, too.
Float = TypeVar("Float", bound=np.floating[Any])

RateLike: TypeAlias = float | np.floating[Any] | np.integer[Any]
RNGLike: TypeAlias = Generator | BitGenerator | RandomState
SeedLike: TypeAlias = int | np.integer[Any] | Sequence[int] | SeedSequence

NOT_GIVEN: Any = np._NoValue  # what NumPy itself has for arguments that may be None and need not be there

NO_AXES: tuple[int, ...] = ()  # the default of shared_axes; CPython has one empty tuple, so it is known by its identity
MAX_NDIM = 64  # NumPy 2's limit
MAX_ELEMENTS = 2**63  # indices stay positive in 64 bits, signed or not


# ---- integers ------------------------------------------------------------------------------------


def _index(value: Any) -> int:
    """Return what `operator.index` does, but refuse booleans, which are integers to Python and to PyTorch."""
    if type(value) is int:
        return value
    if isinstance(value, (bool, np.bool_)):  # first, for older NumPys only warn when asked
        raise TypeError
    number = operator.index(value)
    if "bool" in str(getattr(value, "dtype", "")):
        raise TypeError
    return number


def _integer(name: str, value: Any) -> int:
    """Return an integer; a boolean is none."""
    try:
        return _index(value)
    except TypeError:
        raise TypeError(f"{name} must be an integer, got {type(value).__name__}") from None


def integers(name: str, values: SupportsIndex | Iterable[SupportsIndex]) -> tuple[int, ...]:
    """Return an integer or a sequence of integers as a tuple."""
    if type(values) is not tuple:
        try:
            return (_index(values),)
        except TypeError:
            pass
    try:
        return tuple(map(_index, values))  # type: ignore[arg-type]
    except TypeError:
        raise TypeError(f"{name} must be an integer or a sequence of integers, got {values!r}") from None


# ---- the numbers of a mask -----------------------------------------------------------------------


def rate(value: Any) -> float:
    """Return the drop rate as a float in [0, 1]."""
    if isinstance(value, bool) or not isinstance(value, (float, int, np.integer, np.floating)):
        raise TypeError(f"rate must be a real number in [0, 1], got {type(value).__name__}")
    if not 0 <= value <= 1:
        raise ValueError(f"rate must be in [0, 1], got {value}")
    return float(value)


def threshold(checked_rate: float) -> int:
    """Return T: an element is dropped if its 32-bit uniform is below it. `round` is half to even, as stream v1 says."""
    return round(checked_rate * 4294967296.0)


def scale(of_threshold: int) -> float:
    """Return what the kept are multiplied by: from the threshold, not the rate, so that the mean is exact."""
    return 4294967296.0 / (4294967296 - of_threshold) if of_threshold < 4294967296 else 0.0


def alpha(value: Any, dtype: np.dtype[Any]) -> float:
    """Return a factor as a number that the dtype has."""
    if isinstance(value, bool) or not isinstance(value, (float, int, np.integer, np.floating)):
        raise TypeError(f"alpha must be a real number, got {type(value).__name__}")
    with np.errstate(all="ignore"), suppress(OverflowError):  # an int may be more than a float can be
        number = float(dtype.type(float(value)))
        if math.isfinite(number) or not math.isfinite(value):
            return number
    raise ValueError(f"alpha must be a number that {dtype} has, got {value}")


def unsigned(name: str, value: Any, bits: int) -> int:
    """Return an integer in [0, 2**bits)."""
    number = _integer(name, value)
    if not 0 <= number < 1 << bits:
        raise ValueError(f"{name} must be in [0, 2**{bits}), got {number}")
    return number


def drawn(value: Any) -> int:
    """Return how many masks of a key were drawn, in [0, 2**32]."""
    number = _integer("draw", value)
    if not 0 <= number <= 1 << 32:
        raise ValueError(f"draw must be in [0, 2**32] in a state, got {number}")
    return number


def no_masks_left(key: int) -> OverflowError:
    """Return the error of a layer that would have to repeat a mask."""
    return OverflowError(f"the layer's key {key} has given its 2**32 masks; load a state with another key")


# NumPy's bit generators with raw numbers of 64 bits.
_RAW_IS_64_BITS = frozenset((PCG64, PCG64DXSM, Philox, SFC64))


def new_key(rng: RNGLike | SeedLike | None) -> int:
    """Return a key: the next 64 bits of the bit generator, or of the system's entropy for None.

    The rule is in docs/stream.md, section 3: NumPy's raw streams do not change, what `Generator` makes of them may.
    """
    if rng is None:
        return int.from_bytes(os.urandom(8), "little")
    bits = rng.bit_generator if isinstance(rng, Generator) else _bit_generator(rng)
    if type(bits) in _RAW_IS_64_BITS:
        return bits.random_raw()  # an int, drawn under the bit generator's own lock
    if isinstance(bits, MT19937):
        high, low = bits.random_raw(2).tolist()  # one call, for another thread must not draw in between
        return int(high << 32 | low)
    with bits.lock:
        return int(bits.ctypes.next_uint64(bits.ctypes.state))


def key_or_new(key: Any, rng: Any) -> int:
    """Return the key of a mask: the one that is given, or one that is drawn."""
    if (key is NOT_GIVEN) == (rng is NOT_GIVEN):
        raise TypeError(f"give key or rng, exactly one of them; got {'neither' if key is NOT_GIVEN else 'both'}")
    return new_key(rng) if key is NOT_GIVEN else unsigned("key", key, 64)


def _bit_generator(rng: Any) -> BitGenerator:
    if isinstance(rng, BitGenerator):
        return rng
    if isinstance(rng, RandomState):
        return rng._bit_generator  # there is no public way; numpy.random.default_rng takes it since NumPy 2.2
    try:
        _no_booleans(rng)
        return default_rng(rng).bit_generator
    except (TypeError, ValueError) as error:
        raise type(error)(f"rng must be something that numpy.random.default_rng takes, got {rng!r}") from error


def _no_booleans(seed: Any) -> None:
    """NumPy refuses them as a seed, but takes them for integers within a sequence."""
    if isinstance(seed, (list, tuple)):
        for part in seed:
            _no_booleans(part)
    elif isinstance(seed, bool):
        raise TypeError("a boolean is no seed")


# ---- shapes --------------------------------------------------------------------------------------


def shape(name: str, values: SupportsIndex | Iterable[SupportsIndex]) -> tuple[int, ...]:
    """Return the lengths of the axes."""
    lengths = integers(name, values)
    if len(lengths) > MAX_NDIM:
        raise ValueError(f"{name} must have at most {MAX_NDIM} axes, got {len(lengths)}")
    if any(n < 0 or n >= MAX_ELEMENTS for n in lengths):
        raise ValueError(f"{name} must have lengths in [0, 2**63), got {lengths}")
    return lengths


Sharing: TypeAlias = tuple[tuple[int, ...], tuple[int, ...]]


def sharing(
    shape: tuple[int, ...],
    shared_axes: SupportsIndex | Iterable[SupportsIndex],
    noise_shape: Iterable[SupportsIndex | None] | None,
) -> Sharing:
    """Return (strides of the index, shared_axes) of a mask for x of this shape.

    The two ways to say which axes share their bits are two spellings of one thing, so only one may be given.
    """
    axes = integers("shared_axes", shared_axes)
    if noise_shape is None:
        return _sharing(shape, axes)
    if axes:
        raise both_given(shared_axes, noise_shape)
    lengths = noise_lengths(noise_shape)
    if len(lengths) != len(shape) or any(n not in (None, 1, full) for n, full in zip(lengths, shape, strict=True)):
        raise wrong_noise_shape(shape, lengths)
    return _sharing(shape, tuple(axis for axis, n in enumerate(lengths) if n == 1))


def noise_lengths(noise_shape: Iterable[SupportsIndex | None]) -> tuple[int | None, ...]:
    """Return a noise_shape as a tuple of integers and None."""
    try:
        return tuple(None if n is None else _index(n) for n in noise_shape)
    except TypeError:
        raise not_a_noise_shape(noise_shape) from None


def not_a_noise_shape(value: Any) -> TypeError:
    """Return the error for something that is no noise_shape for any array."""
    return TypeError(f"noise_shape must be a sequence of integers and None, got {value!r}")


NOISE_SHAPE = "noise_shape must have one entry an axis, each 1 (shared), the axis's length or None (full)"


def wrong_noise_shape(shape: tuple[Any, ...], got: tuple[Any, ...]) -> ValueError:
    """Return the error for a noise_shape that does not fit the data."""
    return ValueError(f"{NOISE_SHAPE}; for the shape {shape} got {got}")


def both_given(shared_axes: Any, noise_shape: Any) -> ValueError:
    """Return the error of one who says twice which axes are shared."""
    return ValueError(f"give shared_axes or noise_shape, not both; got {shared_axes!r} and {noise_shape!r}")


def sharing_of_any_shape(
    shared_axes: SupportsIndex | Iterable[SupportsIndex], noise_shape: Iterable[SupportsIndex | None] | None
) -> tuple[tuple[int, ...], tuple[int | None, ...] | None]:
    """Return what a layer is told of its masks, for inputs that are yet to come, if there can be one that it fits."""
    axes = integers("shared_axes", shared_axes)
    lengths = None if noise_shape is None else noise_lengths(noise_shape)
    if axes and lengths is not None:
        raise both_given(axes, lengths)
    if not all(-MAX_NDIM <= axis < MAX_NDIM for axis in axes):
        raise ValueError(f"shared_axes must be in [-{MAX_NDIM}, {MAX_NDIM}), for arrays of any shape, got {axes}")
    if len(set(axes)) < len(axes):
        raise _named_twice(axes)
    if lengths is not None and len(lengths) > MAX_NDIM:
        raise ValueError(f"noise_shape must have at most {MAX_NDIM} entries, got {len(lengths)}")
    # Where the shape is known a 0 may stand for an axis of length 0; a layer says None, for it would take nothing else.
    if not all(n is None or 1 <= n < MAX_ELEMENTS for n in lengths or ()):
        raise ValueError(f"noise_shape must have entries in [1, 2**63) or None in a layer, got {lengths}")
    return axes, lengths


def _named_twice(axes: tuple[int, ...]) -> ValueError:
    """Return the error for axes that are not all different."""
    return ValueError(f"shared_axes must name each axis once, got {axes}")


def axes_in(ndim: int, axes: tuple[int, ...]) -> tuple[int, ...]:
    """Return which of so many axes these are, in order."""
    for axis in axes:
        if not -ndim <= axis < ndim:
            raise ValueError(f"shared_axes must be in [{-ndim}, {ndim}) for {ndim} axes, got {axis}")
    shared_axes = tuple(sorted(axis % ndim for axis in axes))
    if len(set(shared_axes)) < len(shared_axes):
        raise _named_twice(axes)
    return shared_axes


@functools.lru_cache(maxsize=1024)
def _sharing(shape: tuple[int, ...], axes: tuple[int, ...]) -> Sharing:
    shared_axes = axes_in(len(shape), axes)
    noise_shape = tuple(1 if axis in shared_axes else n for axis, n in enumerate(shape))
    elements = math.prod(noise_shape)
    if elements > MAX_ELEMENTS:
        raise ValueError(f"a mask has at most 2**63 elements, got {elements} for the noise_shape {noise_shape}")
    strides, stride = [0] * len(shape), 1
    for axis in reversed(range(len(shape))):
        if noise_shape[axis] > 1 and elements > 0:
            strides[axis] = stride
            stride *= noise_shape[axis]
    return tuple(strides), shared_axes


def layout(
    x: Any,
    shared_axes: SupportsIndex | Iterable[SupportsIndex],
    noise_shape: Iterable[SupportsIndex | None] | None,
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return the shape of `x`, and the index strides of a mask for it."""
    if not isinstance(x, np.ndarray):
        raise not_an_array("x", x)
    if noise_shape is None and shared_axes is NO_AXES:  # what most calls ask for, and a tenth of a small call's time
        return _unshared(x.shape)
    return x.shape, sharing(x.shape, shared_axes, noise_shape)[0]


@functools.lru_cache(maxsize=1024)
def _unshared(shape: tuple[int, ...]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    return shape, _sharing(shape, NO_AXES)[0]


def window(
    whole: tuple[int, ...],
    start: SupportsIndex | Iterable[SupportsIndex],
    shape_: SupportsIndex | Iterable[SupportsIndex],
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return the start and the shape of a window inside a mask of the shape `whole`."""
    first, lengths = integers("start", start), shape("shape", shape_)
    if len(first) != len(whole) or len(lengths) != len(whole):
        raise ValueError(
            f"start and shape must have one entry for each of the mask's {len(whole)} axes, got {first} and {lengths}"
        )
    for axis, (begin, n, full) in enumerate(zip(first, lengths, whole, strict=True)):
        if begin < 0 or begin + n > full:
            raise ValueError(
                f"the window must lie inside the mask's shape {whole}; "
                f"on axis {axis} it goes from {begin} to {begin + n} of {full}"
            )
    return first, lengths


# ---- arrays --------------------------------------------------------------------------------------

_FLOATS = frozenset(map(np.dtype, (np.float16, np.float32, np.float64)))


def takes(dtype: np.dtype[Any]) -> bool:
    """Return whether dropout takes arrays of this dtype."""
    return dtype in _FLOATS or is_bfloat16(dtype)


def is_bfloat16(dtype: np.dtype[Any]) -> bool:
    """Return whether this is the bfloat16 of ml_dtypes, by its name: importing ml_dtypes to ask would need it."""
    return dtype.type.__module__ == "ml_dtypes" and dtype.type.__name__ == "bfloat16"


def not_a_mask(value: Any, name: str = "mask") -> TypeError:
    """Return the error for something that is not a mask."""
    return TypeError(f"{name} must be a dropfast.Mask, got {type(value).__name__}")


def is_plain(array: Any) -> bool:
    """Return whether this is an array and no more. A subclass may mean more by it, which would be lost."""
    return type(array) in (np.ndarray, np.memmap)


def not_an_array(name: str, value: Any) -> TypeError:
    """Return the error for something that is no plain array."""
    got = type(value).__name__
    if isinstance(value, np.ndarray):
        return TypeError(
            f"{name} must be a numpy.ndarray or numpy.memmap itself, got the subclass {got}; "
            f"numpy.asarray({name}) makes one, without what the subclass adds"
        )
    return TypeError(f"{name} must be a numpy.ndarray, got {got}{_doors.hint(value)}")


def _overlaps_itself(array: npt.NDArray[Any]) -> bool:
    """Return whether elements may share memory: an axis steps less far than the ones inside it reach."""
    if array.flags.c_contiguous:
        return False
    reach = array.itemsize
    for stride, n in sorted((abs(stride), n) for stride, n in zip(array.strides, array.shape, strict=True) if n > 1):
        if stride < reach:
            return True
        reach += stride * (n - 1)
    return False


def share_memory(x: npt.NDArray[Any], out: npt.NDArray[Any]) -> bool:
    """Return whether arrays have elements in common; also if that would take ages to find out, as it can."""
    try:
        # A tenth of a second, where views of one array take a hundredth. The type stubs know of 0 and -1 only.
        return np.shares_memory(x, out, max_work=1_000_000)  # type: ignore[arg-type]
    except np.exceptions.TooHardError:
        return True


def wrong_dtype(dtype: Any, name: str = "x") -> TypeError:
    """Return the error for data of another dtype."""
    return TypeError(f"{name} must have dtype float16, bfloat16, float32 or float64 in native byte order, got {dtype}")


def wrong_shape(shape: tuple[int, ...], got: tuple[Any, ...]) -> ValueError:
    """Return the error for data of another shape than the mask's."""
    return ValueError(f"x must have the mask's shape {shape}, got {got}")


def fault(x: Any, out: Any, shape: tuple[int, ...]) -> Exception | None:
    """Return what is wrong with these arrays for a mask of this shape, None if nothing is."""
    for name, array in (("x", x), ("out", out)):
        if not is_plain(array):
            return not_an_array(name, array)
    if not takes(x.dtype):
        return wrong_dtype(x.dtype)
    if x.shape != shape:
        return wrong_shape(shape, x.shape)
    if out.dtype != x.dtype:
        return TypeError(f"out must have the dtype of x, {x.dtype}, got {out.dtype}")
    if out.shape != shape:
        return ValueError(f"out must have the shape of x, {shape}, got {out.shape}")
    if not out.flags.writeable:
        return ValueError("out must be writable, got a read-only array")
    if x.size == 0:
        return None
    if _overlaps_itself(out):
        return ValueError(f"out must not overlap itself, got the strides {out.strides} for the shape {shape}")
    strides = zip(x.strides, out.strides, shape, strict=True)
    same = x.ctypes.data == out.ctypes.data and all(a == b or n == 1 for a, b, n in strides)
    if not same and share_memory(x, out):
        return ValueError("out must be x itself or not overlap it, got an array that shares part of its memory")
    return None


# ---- what is kept along an axis ------------------------------------------------------------------


class Kept(NamedTuple):
    """What a mask keeps along the one axis that it varies along."""

    length: int  # of the axis
    left: int  # how many are kept
    bits: npt.NDArray[np.uint8]  # which: those of Mask.packed()


@functools.lru_cache(maxsize=1024)
def one_axis(noise_shape: tuple[int, ...], shared_axes: tuple[int, ...]) -> int:
    """Return the one axis that a mask varies along; where an axis is longer than 1, those of length 1 are none."""
    axes = [axis for axis in range(len(noise_shape)) if axis not in shared_axes]
    axes = [axis for axis in axes if noise_shape[axis] != 1] or axes
    if len(axes) != 1:
        raise ValueError(f"the mask must vary along just one axis, got one with the noise_shape {noise_shape}")
    return axes[0]


def wrong_compact_shape(shape: tuple[int, ...], got: tuple[int, ...]) -> ValueError:
    """Return the error for data of another shape than that of what a mask keeps."""
    return ValueError(f"y must have the shape of what the mask keeps, {shape}, got {got}")


def wrong_part(shape: tuple[int, ...], got: tuple[int, ...]) -> ValueError:
    """Return the error for data of another shape than that of what masks keep of weights."""
    return ValueError(f"g must have the shape of what is kept of w, {shape}, got {got}")


def floats(name: str, array: Any) -> None:
    """Refuse what is no plain array, or none of floats."""
    if not is_plain(array):
        raise not_an_array(name, array)
    if not takes(array.dtype):
        raise wrong_dtype(array.dtype, name)


def lengths(name: str, shape: tuple[int, ...], expected: Mapping[int, tuple[str, int]]) -> None:
    """Refuse an array that is not as long as expected, by axis: in words, and in numbers."""
    for axis, (words, length) in expected.items():
        if len(shape) <= axis:
            raise ValueError(f"{name} must have an axis {axis} for {words}, got the shape {shape}")
        if shape[axis] != length:
            raise ValueError(f"{name} must have the length of {words} on axis {axis}, {length}, got {shape[axis]}")


def target(name: str, array: Any, shape: tuple[int, ...], source_name: str, source: npt.NDArray[Any]) -> None:
    """Refuse an array that what is made of `source` cannot be written into."""
    if not is_plain(array):
        raise not_an_array(name, array)
    if array.dtype != source.dtype:
        raise TypeError(f"{name} must have the dtype of {source_name}, {source.dtype}, got {array.dtype}")
    if array.shape != shape:
        raise ValueError(f"{name} must have the shape {shape}, got {array.shape}")
    if not array.flags.writeable:
        raise ValueError(f"{name} must be writable, got a read-only array")
    if array.size and _overlaps_itself(array):
        raise ValueError(f"{name} must not overlap itself, got the strides {array.strides} for the shape {shape}")
    if share_memory(source, array):
        raise ValueError(f"{name} must not overlap {source_name}, got an array that shares memory with it")
