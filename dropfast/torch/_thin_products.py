"""Products without what masks drop, of tensors that are known to be legal.

A compact tensor has the kept units alone. Two moves make it, each the other's gradient: `take` what masks keep, and
`put` it among zeros. So gradients of parameters are dense, and any optimizer may have them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from dropfast import _checks, thin
from dropfast._mask import Mask
from dropfast.torch import _private
from dropfast.torch._eager import is_plain
from dropfast.torch._operators import array_of

# ---- moves ---------------------------------------------------------------------------------------


def _tensor_of(array: Any) -> Tensor:
    """Return a tensor in an array's memory."""
    if _checks.is_bfloat16(array.dtype):
        return torch.from_numpy(array.view("i2")).view(torch.bfloat16)
    return torch.from_numpy(array)


def _is_for_kernels(tensor: Tensor) -> bool:
    """Return whether kernels may have it: compiled autograd and batched gradients are for PyTorch's own operators."""
    return not torch.compiler.is_compiling() and is_plain(tensor)


def take(tensor: Tensor, rows: Mask | None, cols: Mask | None) -> Tensor:
    """Return what masks keep of the first two axes, as it is."""
    if rows is None and cols is None:
        return tensor
    if _is_for_kernels(tensor):
        return _Take.apply(tensor, rows, cols)  # type: ignore[no-any-return]
    for axis, mask in enumerate((rows, cols)):
        if mask is not None:
            tensor = tensor.index_select(axis, torch.from_numpy(mask.kept()))
    return tensor


def put(compact: Tensor, rows: Mask | None, cols: Mask | None, shape: Sequence[int]) -> Tensor:
    """Return what `take` took of a tensor of this shape, among zeros."""
    if rows is None and cols is None:
        return compact
    if _is_for_kernels(compact):
        return _Put.apply(compact, rows, cols, shape)  # type: ignore[no-any-return]
    for axis, mask in ((1, cols), (0, rows)):
        if mask is not None:
            lengths = (*compact.shape[:axis], shape[axis], *compact.shape[axis + 1 :])
            compact = compact.new_zeros(lengths).index_copy(axis, torch.from_numpy(mask.kept()), compact)
    return compact


class _Take(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, tensor: Tensor, rows: Mask | None, cols: Mask | None) -> Tensor:
        ctx.rest = rows, cols, tensor.shape
        return _tensor_of(thin.take(array_of(tensor.detach()), rows, cols))

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        return put(grad, *ctx.rest), None, None

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor, *_: None) -> Tensor:
        return take(tangent, *ctx.rest[:2])


class _Put(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, compact: Tensor, rows: Mask | None, cols: Mask | None, shape: Sequence[int]) -> Tensor:
        ctx.rest = rows, cols, shape
        dense = compact.new_empty(shape)
        thin.put(array_of(compact.detach()), rows, cols, out=array_of(dense))
        return dense

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        return take(grad, *ctx.rest[:2]), None, None, None

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor, *_: None) -> Tensor:
        return put(tangent, *ctx.rest)


# ---- products ------------------------------------------------------------------------------------

_LINE = 64  # bytes


def _padded(shape: Sequence[int], like: Tensor) -> Tensor:
    """Return a new tensor whose rows begin at multiples of 64 bytes: MKL loses a third of its speed at other ones."""
    line = _LINE // like.element_size()
    stride, strides = 1, []
    for n in reversed(shape):
        strides.append(stride)
        stride = -(-n // line) * line if stride == 1 else stride * n
    return torch.empty_strided(tuple(shape), strides[::-1], dtype=like.dtype)


def rows_of(tensor: Tensor) -> Tensor:
    """Return a tensor with two axes, of which the last is the last; a view, where rows lie at equal distances."""
    return tensor.reshape(math.prod(tensor.shape[:-1]), tensor.shape[-1])


def _product(left: Tensor, right: Tensor, padded: bool, bias: Tensor | None = None) -> Tensor:
    """Return ``left @ right + bias``, which autograd need not know."""
    shape = *left.shape[:-1], right.shape[1]
    out = _padded(shape, left) if padded else left.new_empty(shape)
    if bias is None:
        torch.mm(rows_of(left), right, out=rows_of(out))
    else:
        torch.addmm(bias, rows_of(left), right, out=rows_of(out))
    return out


def _flat(weight: Tensor) -> Tensor:
    return weight.reshape(weight.shape[0], math.prod(weight.shape[1:]))


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, in_mask: Mask | None, out_mask: Mask | None
    ) -> Tensor:
        compact = take(weight, out_mask, in_mask)
        ctx.masks, ctx.shape = (in_mask, out_mask), compact.shape
        compact = _flat(compact)
        ctx.save_for_backward(x, weight, compact)
        if bias is not None and out_mask is not None:
            bias = take(bias[None], None, out_mask)[0]
        return _product(x, compact.t(), out_mask is not None, bias)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, compact = ctx.saved_tensors
        in_mask, out_mask = ctx.masks
        product: Callable[[Tensor, Tensor, bool], Tensor] = _product
        if torch.is_grad_enabled() or not _is_for_kernels(grad):  # gradients of this one are to come
            compact, product = _flat(take(weight, out_mask, in_mask)), _differentiable_product
        rows = rows_of(grad)
        dx = dweight = dbias = None
        if ctx.needs_input_grad[0]:
            dx = product(grad, compact, in_mask is not None)
        if ctx.needs_input_grad[1]:
            dcompact = product(rows.t(), rows_of(x), True)
            dweight = put(dcompact.reshape(ctx.shape), out_mask, in_mask, weight.shape)
        if ctx.needs_input_grad[2]:
            dbias = rows.sum(0)
            if out_mask is not None:
                dbias = put(dbias[None], None, out_mask, (1, weight.shape[0]))[0]
        return dx, dweight, dbias, None, None


def _differentiable_product(left: Tensor, right: Tensor, padded: bool) -> Tensor:
    return left @ right


def linear(x: Tensor, weight: Tensor, bias: Tensor | None, in_mask: Mask | None, out_mask: Mask | None) -> Tensor:
    """Do what `dropfast.torch.linear` does, unchecked."""
    if _private.is_forward_ad_on():  # for which PyTorch has a formula
        if bias is not None and out_mask is not None:
            bias = take(bias[None], None, out_mask)[0]
        return functional.linear(x, _flat(take(weight, out_mask, in_mask)), bias)
    return _Linear.apply(x, weight, bias, in_mask, out_mask)  # type: ignore[no-any-return]


def conv2d(
    x: Tensor, weight: Tensor, bias: Tensor | None, in_mask: Mask | None, out_mask: Mask | None, *how: Any
) -> Tensor:
    """Do what `dropfast.torch.conv2d` does, unchecked: here oneDNN needs no padded rows."""
    weight = take(weight, out_mask, in_mask)
    if bias is not None and out_mask is not None:
        bias = take(bias[None], None, out_mask)[0]
    channels = weight.shape[0]
    if weight.shape[1] == 0:  # of which it can compute nothing: a channel of zeros adds nothing
        x, weight = functional.pad(x, (0, 0, 0, 0, 0, 1)), functional.pad(weight, (0, 0, 0, 0, 0, 1))
    if channels == 0:
        weight = functional.pad(weight, (0, 0, 0, 0, 0, 0, 0, 1))
        bias = None if bias is None else functional.pad(bias, (0, 1))
    return functional.conv2d(x, weight, bias, *how)[:, :channels]
