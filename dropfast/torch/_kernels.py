"""Kernels for PyTorch's own operators: in C++ over its stable ABI where that is there, and in Python with these bits.

Autograd knows these operators: their nodes keep the mask, a byte an element, and compute without Python. That is the
short way of small tensors. `native_dropout` and its gradient are those of PyTorch's that have kernels on the CPU; ours
are for `enable`. `_fused_dropout` and `_masked_scale` have none there: they do the same for `dropout` and the layers.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, library

from dropfast import _backend, _checks
from dropfast.torch import _abi
from dropfast.torch._operators import ALL_64, FLOATS, array_of, new_key, strides_of

if _abi.is_there:
    _own = _abi.Compiled("aten", ("_fused_dropout", "_masked_scale"), "CPU")


# ---- in Python -----------------------------------------------------------------------------------


def native_dropout(input: Tensor, p: float, train: bool | None) -> tuple[Tensor, Tensor]:
    """See the operator of this name, and csrc/torch_ops.cpp."""
    keep = torch.empty_like(input, dtype=torch.bool, requires_grad=False)
    if input.numel() == 0:
        return input, keep
    if train is False:
        return input.clone(), keep.fill_(True)
    if input.dtype not in FLOATS:
        return input.mul(keep.bernoulli_(1 - p)).mul_(0.0 if p == 1 else 1 / (1 - p)), keep
    x = input.detach()
    output = torch.empty_like(x)
    shape = tuple(x.shape)
    recipe = shape, strides_of(shape, ()), 0, int(new_key()) & ALL_64, 0, _checks.threshold(p)
    _backend.apply(array_of(x), array_of(output), recipe, keep.numpy())
    return output, keep


def native_dropout_backward(grad_output: Tensor, mask: Tensor, scale: float) -> Tensor:
    """See the operator of this name, and csrc/torch_ops.cpp."""
    if grad_output.dtype not in FLOATS or math.isinf(scale):
        return grad_output * (mask * scale)
    return torch.where(mask.bool(), grad_output * scale, 0.0)


_LIBRARY = library.Library("dropfast", "FRAGMENT")  # where the kernels in C++ leave what they do not take
for _schema, _kernel in (
    ("any_native_dropout(Tensor input, float p, bool? train) -> (Tensor, Tensor)", native_dropout),
    ("any_native_dropout_backward(Tensor grad_output, Tensor mask, float scale) -> Tensor", native_dropout_backward),
):
    _abi.define_for_cxx(_LIBRARY, _schema, _kernel, "CPU")
