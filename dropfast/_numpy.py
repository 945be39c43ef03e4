"""The twin: the same three functions as the compiled backend, in NumPy, with the same bits.

It is what runs where nothing could be compiled, and the second opinion in every test. The way is that of
csrc/kernels.cpp: planes of 128 random bits a block, and only blocks with an undecided element are drawn further.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from dropfast import _checks, _floats
from dropfast._checks import Kept, Recipe

Words: TypeAlias = npt.NDArray[np.uint64]

# Philox4x32-10: Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC11.
MULTIPLIERS = 0xD2511F53, 0xCD9E8D57
WEYL = 0x9E3779B9, 0xBB67AE85
ROUNDS = 10
LOW = 0xFFFFFFFF

BLOCK = 128  # elements that share one Philox call a plane
PIECE = 1 << 18  # elements handled at a time: enough to hide NumPy's cost per call, and temporaries of 3 MiB
PLANES_AT_ONCE = 8, 2, 3, 4, 15  # all 32: most blocks need 8, and each step leaves a fraction of them


# ---- draw ----------------------------------------------------------------------------------------


def _philox(w0: Any, w1: Any, w2: Any, w3: Any, key: int) -> tuple[Any, Any, Any, Any]:
    """Philox4x32-10 on 32-bit words in uint64 arrays that broadcast: what is the same for all is computed once."""
    k0, k1 = key & LOW, key >> 32
    for _ in range(ROUNDS):
        p0, p1 = w0 * MULTIPLIERS[0], w2 * MULTIPLIERS[1]
        w0, w1, w2, w3 = (p1 >> 32) ^ (w1 ^ k0), p1 & LOW, (p0 >> 32) ^ (w3 ^ k1), p0 & LOW
        k0, k1 = k0 + WEYL[0] & LOW, k1 + WEYL[1] & LOW
    return w0, w1, w2, w3


def _planes(blocks: Words, first: int, count: int, key: int, draw: int) -> Words:
    """Planes `first` to `first + count` of the blocks, as (count, 2, blocks): two words of 64 bits for each block."""
    k = np.arange(first, first + count, dtype=np.uint64)[:, None]
    w0, w1, w2, w3 = _philox(blocks & LOW, blocks >> 32, draw, k, key)
    return np.stack((w0 | w1 << 32, w2 | w3 << 32), axis=1)


def _keep_bits(blocks: Words, key: int, draw: int, threshold: int) -> npt.NDArray[np.uint8]:
    """Return the keep bits of the blocks, one byte a bit, as (blocks, 128)."""
    if threshold in (0, 1 << 32):
        return np.full((blocks.size, BLOCK), threshold == 0, np.uint8)
    needed = 32 - (threshold & -threshold).bit_length() + 1  # below its lowest set bit nothing can be smaller
    keep = np.empty((2, blocks.size), np.uint64)
    todo = np.arange(blocks.size)
    drop = np.zeros((2, blocks.size), np.uint64)
    undecided = ~drop
    k = 0
    for at_once in PLANES_AT_ONCE:
        for plane in _planes(blocks[todo], k, min(at_once, needed - k), key, draw):
            if threshold >> (31 - k) & 1:
                drop |= undecided & ~plane
                undecided &= plane
            else:
                undecided &= ~plane
            k += 1
        keep[:, todo] = ~drop
        more = undecided.any(axis=0)
        if k == needed or not more.any():
            break
        todo, drop, undecided = todo[more], drop[:, more], undecided[:, more]
    return np.unpackbits(keep.T.astype("<u8", order="C").view(np.uint8), axis=1, bitorder="little")


def _keep(shape: tuple[int, ...], strides: tuple[int, ...], start: int, *recipe: int) -> npt.NDArray[np.uint8]:
    """Return the keep bits of a small mask, one byte a bit, in the shape that broadcasts against x."""
    noise_shape = tuple(n if stride else 1 for n, stride in zip(shape, strides, strict=True))
    # Runs of consecutive indices: their starts, and the length they have in common.
    starts: Words = np.array([start], np.uint64)
    length, covered = 1, len(shape)
    while covered > 0 and (noise_shape[covered - 1] == 1 or strides[covered - 1] == length):
        length *= noise_shape[covered - 1]
        covered -= 1
    for n, stride in zip(noise_shape[:covered], strides, strict=False):
        starts = (starts[:, None] + np.arange(n, dtype=np.uint64) * np.uint64(stride)).ravel()

    offsets = (starts & (BLOCK - 1)).astype(np.intp)
    n_blocks = (int(offsets.max(initial=0)) + length + BLOCK - 1) // BLOCK
    blocks: Words = np.add.outer(starts >> np.uint64(7), np.arange(n_blocks, dtype=np.uint64))
    bits = _keep_bits(blocks.ravel(), *recipe).reshape(starts.size, n_blocks * BLOCK)
    if starts.size == 1:
        bits = bits[:, offsets[0] : offsets[0] + length]
    else:
        bits = np.take_along_axis(bits, offsets[:, None] + np.arange(length), axis=1)
    return bits.reshape(noise_shape)


# ---- select --------------------------------------------------------------------------------------


def _widened(x: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Return bfloat16 as float32."""
    return (x.view(np.uint16).astype(np.uint32) << 16).view(np.float32)


def _narrow(wide: npt.NDArray[Any], out: npt.NDArray[Any]) -> None:
    """Round float32 to bfloat16, to nearest even. A NaN of what was widened has a low half of 0: nothing carries."""
    bits = wide.view(np.uint32)
    out.view(np.uint16)[...] = (bits + (0x7FFF + (bits >> 16 & 1))) >> 16


def _multiply(x: npt.NDArray[Any], factor: float, out: npt.NDArray[Any]) -> None:
    """Write x * factor, rounded once."""
    if _checks.is_bfloat16(x.dtype):
        _narrow(_widened(x) * np.float32(factor), out)
    elif out.dtype == np.float16:
        np.copyto(out, x.astype(np.float32) * np.float32(factor), casting="same_kind")
    else:
        np.multiply(x, out.dtype.type(factor), out=out)


def _select(x: npt.NDArray[Any], out: npt.NDArray[Any], keep: npt.NDArray[np.uint8], scale: float) -> None:
    """Write x * scale where keep is 1 and +0.0 where it is 0: by masking the bits, for 0 * inf is NaN."""
    unsigned = np.dtype(f"u{out.itemsize}")
    _multiply(x, scale, out)
    masked = out.view(unsigned)
    masked &= np.negative(keep, dtype=unsigned)


def _pieces(strides: tuple[int, ...], start: int, place: tuple[slice, ...]) -> Iterator[tuple[tuple[slice, ...], int]]:
    """Cut a place in an array into pieces of at most PIECE elements, each with the index that it starts at."""
    lengths = [along.stop - along.start for along in place]
    if 0 in lengths:  # the other axes may be of any length
        return
    if math.prod(lengths) <= PIECE:
        yield place, start
        return
    # Halve an axis: one on which the mask moves on while the mask is large, then one that shares it.
    mask_is_large = math.prod(n for n, stride in zip(lengths, strides, strict=True) if stride) > PIECE // 16
    long = [axis for axis, n in enumerate(lengths) if n > 1]
    axis = next((axis for axis in long if bool(strides[axis]) == mask_is_large), long[0])
    half = lengths[axis] // 2
    if half > 8 * BLOCK:
        half -= half % (8 * BLOCK)  # whole blocks, where that is easily had
    cut = place[axis].start + half
    for part, first in (
        (slice(place[axis].start, cut), start),
        (slice(cut, place[axis].stop), start + half * strides[axis]),
    ):
        yield from _pieces(strides, first, (*place[:axis], part, *place[axis + 1 :]))


# ---- the three functions of a backend ------------------------------------------------------------


def apply(x: Any, out: Any, recipe: Recipe, kept: Any = None) -> bool:
    """See `dropfast._backend.Backend`."""
    shape, strides, start, *rest = recipe
    if _checks.fault(x, out, shape) is not None:
        return False
    # inf and NaN are the user's; the compiled backend says nothing of them either.
    with _floats.default_mode(), np.errstate(all="ignore"):
        scale = _checks.scale(recipe[-1])
        for place, first in _pieces(strides, start, tuple(slice(0, n) for n in shape)):
            part = out[(..., *place)]  # the ellipsis makes a view of it even where there are no axes
            keep = _keep(part.shape, strides, first, *rest)
            _select(x[(..., *place)], part, keep, scale)
            if kept is not None:
                kept[(..., *place)] = keep
    return True


def packed(out: npt.NDArray[np.uint8], recipe: Recipe) -> None:
    """See `dropfast._backend.Backend`."""
    shape, strides, start, *rest = recipe
    bits, done = np.empty(0, np.uint8), 0
    # Pieces are halves of the outermost axis that is there, so they come in C order.
    for place, first in _pieces(strides, start, tuple(slice(0, n) for n in shape)):
        lengths = tuple(along.stop - along.start for along in place)
        bits = np.concatenate((bits, _keep(lengths, strides, first, *rest).reshape(-1)))
        whole = bits.size // 8
        out[done : done + whole] = np.packbits(bits[: 8 * whole], bitorder="little")
        bits, done = bits[8 * whole :], done + whole
    out[done:] = np.packbits(bits, bitorder="little")


def thin(
    move: str, wide: npt.NDArray[Any], compact: npt.NDArray[Any], kept: Mapping[int, Kept], factor: float | None
) -> None:
    """See `dropfast._backend.Backend`."""
    indices = {
        axis: np.flatnonzero(np.unpackbits(bits, count=length, bitorder="little"))
        for axis, (length, _, bits) in kept.items()
    }
    with _floats.default_mode(), np.errstate(all="ignore"):
        for place, _ in _pieces((0,) * wide.ndim, 0, tuple(slice(0, n) for n in wide.shape)):
            there: list[Any] = [slice(None)] * wide.ndim  # in the piece
            part = list(place)  # in the compact array
            for axis, index in indices.items():
                begin, end = np.searchsorted(index, (place[axis].start, place[axis].stop))
                there[axis], part[axis] = index[begin:end] - place[axis].start, slice(begin, end)
            if len(indices) == 2:  # rows and columns
                there[0] = there[0][:, None]
            _thin_piece(move, wide[place], tuple(there), compact[tuple(part)], factor)


def _thin_piece(
    move: str, wide: npt.NDArray[Any], there: tuple[Any, ...], compact: npt.NDArray[Any], factor: float | None
) -> None:
    """Move one piece, which is `there` in the wide array."""
    source = wide[there] if move == "compress" else compact
    if factor is not None:
        scaled = np.empty(source.shape, source.dtype)
        _multiply(source, factor, scaled)
        source = scaled
    if move == "compress":
        compact[...] = source
    elif move == "expand":
        wide[...] = 0
        wide[there] = source
    elif _checks.is_bfloat16(wide.dtype):
        total = np.empty(source.shape, source.dtype)
        _narrow(_widened(wide[there]) + _widened(source), total)
        wide[there] = total
    else:
        wide[there] += source
