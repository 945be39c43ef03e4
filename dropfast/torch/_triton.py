"""Stream v1 as one kernel for GPUs in eager mode: it draws, selects and scales in one pass over memory.

Imported only where there is a tensor on a GPU, and Triton. A program takes 128 blocks of the mask, whose planes are
drawn in registers, until nothing is undecided; docs/stream.md has the words. Where the mask does not run along memory,
it takes elements instead, each with a block of its own.

Nothing is annotated in the kernel: Triton takes annotations for its own.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from dropfast import _checks
from dropfast._checks import Recipe

BLOCK: tl.constexpr = tl.constexpr(128)  # elements of a block
AT_ONCE: tl.constexpr = tl.constexpr(128)  # blocks of a program, one a thread
ELEMENTS = 1024  # of a program, where each has a block of its own
SHORT = 32  # a run of fewer would leave most of its blocks unused


# ---- in the kernel -------------------------------------------------------------------------------


@triton.jit
def _plane(block, draw, k, k0, k1):
    """Return plane k of the blocks: four words."""
    c0, c1 = block.to(tl.uint32), (block >> 32).to(tl.uint32)
    c2, c3 = tl.zeros_like(c0) + draw.to(tl.uint32), tl.zeros_like(c0) + k.to(tl.uint32)
    m0, m1 = tl.full(c0.shape, 0xD2511F53, tl.uint32), tl.full(c0.shape, 0xCD9E8D57, tl.uint32)
    low, high = k0.to(tl.uint32), k1.to(tl.uint32)
    for _ in tl.static_range(10):
        h0, l0, h1, l1 = tl.umulhi(c0, m0), c0 * m0, tl.umulhi(c2, m1), c2 * m1
        c0, c1, c2, c3 = h1 ^ c1 ^ low, l1, h0 ^ c3 ^ high, l0
        low, high = low + 0x9E3779B9, high + 0xBB67AE85
    return c0, c1, c2, c3


@triton.jit
def _kept(block, draw, k0, k1, threshold, planes, STEP: tl.constexpr):
    """Return the keep bits of the blocks: four words. Planes behind those that are needed decide nothing."""
    none = tl.zeros(block.shape, tl.uint32)
    d0, d1, d2, d3 = none, none, none, none  # dropped
    u0, u1, u2, u3 = ~none, ~none, ~none, ~none  # undecided
    k = planes * 0
    while k < planes:
        for _ in tl.static_range(STEP):
            w0, w1, w2, w3 = _plane(block, draw, k, k0, k1)
            ones = none - ((threshold >> (31 - k)) & 1)  # where the threshold has a 1
            d0, d1, d2, d3 = d0 | u0 & ~w0 & ones, d1 | u1 & ~w1 & ones, d2 | u2 & ~w2 & ones, d3 | u3 & ~w3 & ones
            u0, u1, u2, u3 = u0 & ~(w0 ^ ones), u1 & ~(w1 ^ ones), u2 & ~(w2 ^ ones), u3 & ~(w3 ^ ones)
            k += 1
        if tl.max(u0 | u1 | u2 | u3, 0) == 0:
            k = planes
    return ~d0, ~d1, ~d2, ~d3


@triton.jit
def _begin(row, start, outer):
    """Return the index of the first element of a row, which has its place on the outer axes."""
    index = row * 0 + start
    for i in tl.static_range(len(outer)):
        index += row % outer[i][0] * outer[i][1]
        row = row // outer[i][0]
    return index


@triton.jit
def _select(x, out, at, inside, bits, scale_bits):
    """Write x * scale where the lowest bit is 1, and +0.0 elsewhere."""
    dtype: tl.constexpr = x.dtype.element_ty
    scale = scale_bits.to(tl.int64).to(tl.float64, bitcast=True)
    value = tl.load(x + at, inside)
    if dtype == tl.float64:
        scaled = value * scale
    elif dtype == tl.bfloat16:  # by hand: Triton's interpreter does not round to nearest even, nor know subnormals
        word = value.to(tl.uint16, bitcast=True).to(tl.uint32) << 16
        wide = word.to(tl.float32, bitcast=True) * scale.to(tl.float32)
        word = wide.to(tl.uint32, bitcast=True)
        word = tl.where(wide == wide, (word + 0x7FFF + ((word >> 16) & 1)) >> 16, 0x7FC0)
        scaled = word.to(tl.uint16).to(tl.bfloat16, bitcast=True)
    else:
        scaled = (value.to(tl.float32) * scale.to(tl.float32)).to(dtype)
    tl.store(out + at, tl.where((bits & 1) != 0, scaled, tl.zeros_like(scaled)), inside)


@triton.jit(do_not_specialize=["start", "k0", "k1", "draw", "threshold", "scale_bits", "planes"])
def _kernel(
    x, out, outer, rows, n, pieces, start, k0, k1, draw,
    threshold, scale_bits, planes, STEP: tl.constexpr, RUNS: tl.constexpr, IN_STEP: tl.constexpr,
    COLUMNS: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    """Apply a mask to rows of n elements, each in so many pieces."""
    program = tl.program_id(0).to(tl.int64)
    start, threshold = start.to(tl.int64), threshold.to(tl.uint32)
    if RUNS:  # along which the index counts one by one: a piece is a block
        piece = program * AT_ONCE + tl.arange(0, AT_ONCE)
        row = piece // pieces
        begin = _begin(row, start, outer)
        block = (begin >> 7) + piece % pieces
        w0, w1, w2, w3 = _kept(block, draw, k0, k1, threshold, planes, STEP)
        first = piece % pieces * BLOCK
        if not IN_STEP:
            first -= begin & 127
        at = first[:, None] + tl.arange(0, 32)[None, :]
        bit = tl.arange(0, 32)[None, :].to(tl.uint32)
        there, base = (row < rows)[:, None], (row * n)[:, None]
        _select(x, out, base + at, there & (at >= 0) & (at < n), w0[:, None] >> bit, scale_bits)
        at += 32
        _select(x, out, base + at, there & (at >= 0) & (at < n), w1[:, None] >> bit, scale_bits)
        at += 32
        _select(x, out, base + at, there & (at >= 0) & (at < n), w2[:, None] >> bit, scale_bits)
        at += 32
        _select(x, out, base + at, there & (at >= 0) & (at < n), w3[:, None] >> bit, scale_bits)
    else:  # all of a row shares one bit
        row = program // pieces * ROWS + tl.arange(0, ROWS)
        begin = _begin(row, start, outer)
        w0, w1, w2, w3 = _kept(begin >> 7, draw, k0, k1, threshold, planes, STEP)
        which = (begin >> 5) & 3
        word = tl.where(which < 2, tl.where(which == 0, w0, w1), tl.where(which == 2, w2, w3))
        bits = (word >> (begin & 31).to(tl.uint32))[:, None]
        column = (program % pieces * COLUMNS + tl.arange(0, COLUMNS))[None, :]
        _select(x, out, (row * n)[:, None] + column, (row < rows)[:, None] & (column < n), bits, scale_bits)


# ---- before the kernel ---------------------------------------------------------------------------


def _merged(lengths: Sequence[int], strides: Sequence[int]) -> list[tuple[int, int]]:
    """Return (length, stride of the index) of the axes, the last first; those that run on into each other are one."""
    axes: list[tuple[int, int]] = []
    for n, stride in reversed([(n, stride) for n, stride in zip(lengths, strides, strict=True) if n > 1]):
        if axes and stride == axes[-1][0] * axes[-1][1]:
            axes[-1] = n * axes[-1][0], axes[-1][1]
        else:
            axes.append((n, stride))
    return axes


def _signed(number: int) -> int:
    """Return the low 32 bits as a signed number: Triton compiles once more for what needs 64."""
    return (number & 0xFFFFFFFF ^ 1 << 31) - (1 << 31)


def apply(input: Tensor, recipe: Recipe) -> Tensor:
    """Return a tensor with a mask applied."""
    _, strides, start, key, draw, threshold = recipe
    output = torch.empty_like(input, requires_grad=False)
    if threshold == 1 << 32 or output.numel() == 0:
        return output.zero_()
    # As they lie in memory, outermost first. What has gaps is copied into one piece, and works in place.
    axes = sorted(range(output.ndim), key=output.stride, reverse=True)
    source = input if input.stride() == output.stride() else output.copy_(input)
    merged = _merged([output.shape[axis] for axis in axes], [strides[axis] for axis in axes])
    runs = bool(merged) and merged[0][1] == 1 and merged[0][0] >= SHORT
    n = merged.pop(0)[0] if runs or (merged and merged[0][1] == 0) else 1
    rows = output.numel() // n
    in_step = all(by % BLOCK.value == 0 for by in (start, *(stride for _, stride in merged)))
    if runs:
        pieces, columns, lines = -(-(n if in_step else n + BLOCK.value - 1) // BLOCK.value), 1, 1
        programs = -(-rows * pieces // AT_ONCE.value)
    else:
        columns = min(ELEMENTS, triton.next_power_of_2(n))
        lines = ELEMENTS // columns
        pieces = -(-n // columns)
        programs = -(-rows // lines) * pieces
    planes = 33 - (threshold & -threshold).bit_length() if threshold else 0
    step = min(planes, 4) or 1
    (scale_bits,) = struct.unpack("=q", struct.pack("=d", _checks.scale(threshold)))
    with torch.cuda.device_of(output):
        _kernel[(programs,)](
            *(source, output, tuple(merged), rows, n, pieces, start, _signed(key), _signed(key >> 32), _signed(draw)),
            *(_signed(threshold), scale_bits, -(-planes // step) * step),
            STEP=step, RUNS=runs, IN_STEP=in_step, COLUMNS=columns, ROWS=lines,
            enable_fp_fusion=False,
        )  # fmt: skip
    return output
