"""Products without what masks drop, of tensors that are known to be legal.

A compact tensor has the kept units alone. Two moves make it, each the other's gradient: `take` what is kept, and `put`
it among zeros. So gradients of parameters are dense, and any optimizer may have them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from dropfast import _backend
from dropfast._checks import Kept
from dropfast.torch import _private
from dropfast.torch._eager import is_plain
from dropfast.torch._operators import array_of

# ---- memory --------------------------------------------------------------------------------------

_LINE = 64  # bytes


def _padded(shape: Sequence[int], like: Tensor) -> Tensor:
    """Return a new tensor whose rows begin at multiples of 64 bytes: MKL loses up to a third of its speed at others."""
    line = _LINE // like.element_size()
    stride = -(-shape[-1] // line) * line
    strides = [1]
    for n in shape[:0:-1]:
        strides.append(stride if len(strides) == 1 else strides[-1] * n)
    return torch.empty_strided(tuple(shape), strides[::-1], dtype=like.dtype)


# ---- moves ---------------------------------------------------------------------------------------


def _is_for_kernels(tensor: Tensor) -> bool:
    """Return whether kernels may have it: compiled autograd and batched gradients are for PyTorch's own operators."""
    return not torch.compiler.is_compiling() and is_plain(tensor)


def _indices(kept: Kept) -> Tensor:
    return torch.from_numpy(np.flatnonzero(np.unpackbits(kept.bits, count=kept.length, bitorder="little")))


def _taken(tensor: Tensor, rows: Kept | None, cols: Kept | None = None) -> Tensor:
    """Do what `take` does, in a kernel."""
    kept = {axis: its for axis, its in ((0, rows), (1, cols)) if its is not None}
    if not kept:
        return tensor
    shape = [kept[axis].left if axis in kept else n for axis, n in enumerate(tensor.shape)]
    compact = _padded(shape, tensor) if len(shape) == 2 else tensor.new_empty(shape)
    _backend.active.thin("compress", array_of(tensor.detach()), array_of(compact), kept, None)
    return compact


def _put(compact: Tensor, shape: Sequence[int], rows: Kept | None, cols: Kept | None = None) -> Tensor:
    """Do what `put` does, in a kernel."""
    kept = {axis: its for axis, its in ((0, rows), (1, cols)) if its is not None}
    if not kept:
        return compact
    dense = compact.new_empty(shape)
    _backend.active.thin("expand", array_of(dense), array_of(compact.detach()), kept, None)
    return dense


def take(tensor: Tensor, rows: Kept | None, cols: Kept | None = None) -> Tensor:
    """Return what is kept on axis 0 and axis 1, as it is."""
    if _is_for_kernels(tensor):
        return _Take.apply(tensor, rows, cols)  # type: ignore[no-any-return]
    for axis, kept in ((0, rows), (1, cols)):
        if kept is not None:
            tensor = tensor.index_select(axis, _indices(kept))
    return tensor


def put(compact: Tensor, shape: Sequence[int], rows: Kept | None, cols: Kept | None = None) -> Tensor:
    """Return what `take` took of a tensor of this shape, among zeros."""
    if _is_for_kernels(compact):
        return _Put.apply(compact, shape, rows, cols)  # type: ignore[no-any-return]
    for axis, kept in ((1, cols), (0, rows)):
        if kept is not None:
            lengths = (*compact.shape[:axis], shape[axis], *compact.shape[axis + 1 :])
            compact = compact.new_zeros(lengths).index_copy(axis, _indices(kept), compact)
    return compact


class _Take(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, tensor: Tensor, rows: Kept | None, cols: Kept | None) -> Tensor:
        ctx.shape, ctx.kept = tensor.shape, (rows, cols)
        return _taken(tensor, rows, cols)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        return put(grad, ctx.shape, *ctx.kept), None, None

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor, *_: None) -> Tensor:
        return take(tangent, *ctx.kept)


class _Put(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, compact: Tensor, shape: Sequence[int], rows: Kept | None, cols: Kept | None) -> Tensor:
        ctx.shape, ctx.kept = shape, (rows, cols)
        return _put(compact, shape, rows, cols)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        return take(grad, *ctx.kept), None, None, None

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor, *_: None) -> Tensor:
        return put(tangent, ctx.shape, *ctx.kept)


# ---- products ------------------------------------------------------------------------------------


def rows_of(tensor: Tensor) -> Tensor:
    """Return a tensor with two axes, of which the last is the last; a view, where rows lie at equal distances."""
    if tensor.ndim == 2:
        return tensor
    return tensor.reshape(math.prod(tensor.shape[:-1]), tensor.shape[-1])


def _flat(weight: Tensor) -> Tensor:
    return weight if weight.ndim == 2 else weight.reshape(weight.shape[0], math.prod(weight.shape[1:]))


def _product(left: Tensor, right: Tensor, padded: bool, bias: Tensor | None = None) -> Tensor:
    """Return ``left @ right + bias``, which autograd need not know."""
    shape = *left.shape[:-1], right.shape[1]
    out = _padded(shape, left) if padded else left.new_empty(shape)
    if bias is None:
        torch.mm(rows_of(left), right, out=rows_of(out))
    else:
        torch.addmm(bias, rows_of(left), right, out=rows_of(out))
    return out


def _differentiable_product(left: Tensor, right: Tensor, padded: bool) -> Tensor:
    return left @ right


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, ins: Kept | None, outs: Kept | None
    ) -> Tensor:
        compact = _flat(_taken(weight, outs, ins))
        ctx.save_for_backward(x, weight, compact)
        ctx.kept = ins, outs
        if bias is not None:
            bias = _taken(bias, outs)
        return _product(x, compact.t(), outs is not None, bias)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, compact = ctx.saved_tensors
        ins, outs = ctx.kept
        product: Callable[[Tensor, Tensor, bool], Tensor] = _product
        expand = _put
        if torch.is_grad_enabled() or not _is_for_kernels(grad):  # gradients of this one are to come
            product, expand, compact = _differentiable_product, put, _flat(take(weight, outs, ins))
        rows = rows_of(grad)
        dx = dweight = dbias = None
        if ctx.needs_input_grad[0]:
            dx = product(grad, compact, ins is not None)
        if ctx.needs_input_grad[1]:
            part = product(rows.t(), rows_of(x), True)
            if weight.ndim > 2:
                part = part.reshape(part.shape[0], weight.shape[1] if ins is None else ins.left, *weight.shape[2:])
            dweight = expand(part, weight.shape, outs, ins)
        if ctx.needs_input_grad[2]:
            dbias = expand(rows.sum(0), weight.shape[:1], outs)
        return dx, dweight, dbias, None, None


def linear(x: Tensor, weight: Tensor, bias: Tensor | None, ins: Kept | None, outs: Kept | None) -> Tensor:
    """Do what `dropfast.torch.linear` does, unchecked."""
    if _private.is_forward_ad_on():  # for which PyTorch has a formula
        return functional.linear(x, _flat(take(weight, outs, ins)), bias if bias is None else take(bias, outs))
    return _Linear.apply(x, weight, bias, ins, outs)  # type: ignore[no-any-return]


def conv2d(x: Tensor, weight: Tensor, bias: Tensor | None, ins: Kept | None, outs: Kept | None, *how: Any) -> Tensor:
    """Do what `dropfast.torch.conv2d` does, unchecked: here oneDNN needs no padded rows."""
    weight = take(weight, outs, ins)
    if bias is not None:
        bias = take(bias, outs)
    channels = weight.shape[0]
    if weight.shape[1] == 0:  # of which it can compute nothing: a channel of zeros adds nothing
        x, weight = functional.pad(x, (0, 0, 0, 0, 0, 1)), functional.pad(weight, (0, 0, 0, 0, 0, 1))
    if channels == 0:
        weight = functional.pad(weight, (0, 0, 0, 0, 0, 0, 0, 1))
        bias = None if bias is None else functional.pad(bias, (0, 1))
    return functional.conv2d(x, weight, bias, *how)[:, :channels]
