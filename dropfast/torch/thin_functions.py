"""Products that leave out what a mask drops: `linear` and `conv2d`, of compact inputs, to compact outputs."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from dropfast._checks import Kept
from dropfast._mask import Mask
from dropfast.torch import _thin_products
from dropfast.torch._eager import is_plain


def linear(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, in_mask: Mask | None = None, out_mask: Mask | None = None
) -> Tensor:
    """Return ``x @ weight.T + bias`` without the units that masks drop: compact in, compact out.

    Parameters
    ----------
    x : torch.Tensor
        Of shape (..., units): those that `in_mask` keeps, or all without one; scaled already.
    weight : torch.Tensor
        Dense, of shape (out units, in units). With further axes, (out units, in units, ...), each in unit stands for
        as many consecutive numbers of `x`: the channels of images that are flattened.
    bias : torch.Tensor, optional
        Dense, of shape (out units,).
    in_mask, out_mask : dropfast.Mask, optional
        Which in units `x` has, and which out units to compute: masks that vary along one axis, as those of a layer's
        inputs and outputs with one mask for the whole batch, ``Mask((batch, units), rate, key=key, shared_axes=0)``.

    Returns
    -------
    torch.Tensor
        Of shape (..., units): those that `out_mask` keeps, not scaled. Multiply by ``out_mask.scale`` behind the
        activation, where a dropout layer would. Its rows begin at multiples of 64 bytes, so that it may be strided.

    Raises
    ------
    TypeError
        If a mask is none, or a tensor is not dense, on the CPU and of one of the four dtypes, all of the same, or is
        traced, transformed or under autocast.
    ValueError
        If a shape does not fit, or a mask varies along several axes.
    RuntimeError
        In compiled code.

    Notes
    -----
    But for the order of sums it is what dense layers compute whose other units are masked, in both passes: dropped
    units have the gradient +0.0. A dropped unit's weights are not looked at, so that a NaN or an infinity there is not
    seen, where the dense product gives NaN.

    Examples
    --------
    >>> import torch
    >>> import dropfast.torch
    >>> first, last = torch.nn.Linear(6, 8), torch.nn.Linear(8, 3)
    >>> mask = dropfast.Mask((4, 8), 0.5, key=7, shared_axes=0)
    >>> h = dropfast.torch.linear(torch.ones(4, 6), first.weight, first.bias, out_mask=mask)
    >>> h.shape
    torch.Size([4, 4])
    >>> y = dropfast.torch.linear(h.relu() * mask.scale, last.weight, last.bias, in_mask=mask)
    >>> torch.allclose(y, last(dropfast.torch.apply(mask, first(torch.ones(4, 6)).relu())), atol=1e-6)
    True
    """
    ins, outs = _check(x, weight, bias, in_mask, out_mask)
    width = math.prod((weight.shape[1] if ins is None else ins.left, *weight.shape[2:]))
    if x.ndim == 0 or x.shape[-1] != width:
        raise ValueError(f"x must have {width} units on its last axis, got the shape {tuple(x.shape)}")
    return _thin_products.linear(x, weight, bias, ins, outs)


def conv2d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    in_mask: Mask | None = None,
    out_mask: Mask | None = None,
    *,
    stride: int | Sequence[int] = 1,
    padding: int | Sequence[int] | str = 0,
    dilation: int | Sequence[int] = 1,
) -> Tensor:
    """Return what `torch.nn.functional.conv2d` does without the channels that masks drop: compact in, compact out.

    Parameters
    ----------
    x : torch.Tensor
        Of shape (batch, channels, height, width): the channels that `in_mask` keeps, or all without one.
    weight : torch.Tensor
        Dense, of shape (out channels, in channels, height, width).
    bias : torch.Tensor, optional
        Dense, of shape (out channels,).
    in_mask, out_mask : dropfast.Mask, optional
        Which channels `x` has, and which to compute: masks that vary along one axis, as
        ``Mask((batch, channels, height, width), rate, key=key, shared_axes=(0, 2, 3))``.
    stride, padding, dilation
        As in `torch.nn.functional.conv2d`. There are no groups.

    Returns
    -------
    torch.Tensor
        Of shape (batch, channels, height, width): the channels that `out_mask` keeps, not scaled.

    Raises
    ------
    TypeError, ValueError, RuntimeError
        As in `linear`.

    Notes
    -----
    What is said of `linear` holds here too.

    Examples
    --------
    >>> import torch
    >>> import dropfast.torch
    >>> mask = dropfast.Mask((2, 8, 5, 5), 0.5, key=7, shared_axes=(0, 2, 3))
    >>> dropfast.torch.conv2d(torch.ones(2, 3, 5, 5), torch.ones(8, 3, 3, 3), out_mask=mask, padding=1).shape
    torch.Size([2, 4, 5, 5])
    """
    ins, outs = _check(x, weight, bias, in_mask, out_mask)
    channels = weight.shape[1] if ins is None else ins.left
    if x.ndim != 4 or weight.ndim != 4 or x.shape[1] != channels:
        raise ValueError(
            f"x must have four axes with {channels} channels on axis 1, and weight four axes, "
            f"got the shapes {tuple(x.shape)} and {tuple(weight.shape)}"
        )
    return _thin_products.conv2d(x, weight, bias, ins, outs, stride, padding, dilation)


# ---- what is legal -------------------------------------------------------------------------------


def _check(
    x: Tensor, weight: Tensor, bias: Tensor | None, in_mask: Mask | None, out_mask: Mask | None
) -> tuple[Kept | None, Kept | None]:
    """Refuse what cannot be computed, and return what is kept of the in units and of the out units."""
    if torch.compiler.is_compiling():
        raise RuntimeError("thinned products cannot be compiled or exported, for their sizes are those of masks")
    for name, tensor in (("x", x), ("weight", weight), ("bias", bias)):
        if tensor is None and name == "bias":
            continue
        if not isinstance(tensor, Tensor):
            raise TypeError(f"{name} must be a torch.Tensor, got {type(tensor).__name__}")
        if not is_plain(tensor) or tensor.dtype != x.dtype or torch.is_autocast_enabled("cpu"):
            raise TypeError(
                f"{name} must be a dense tensor of the CPU, of one of torch.float16, torch.bfloat16, torch.float32 and "
                "torch.float64, the same for all, neither traced nor transformed nor under autocast, "
                f"got a {type(tensor).__name__} of {tensor.dtype}, {tensor.layout}, on {tensor.device}"
            )
    if weight.ndim < 2:
        raise ValueError(f"weight must have at least two axes, got the shape {tuple(weight.shape)}")
    if bias is not None and bias.shape != weight.shape[:1]:
        raise ValueError(f"bias must have the shape {tuple(weight.shape[:1])}, got {tuple(bias.shape)}")
    return _kept("in_mask", in_mask, weight, 1), _kept("out_mask", out_mask, weight, 0)


def _kept(name: str, mask: Mask | None, weight: Tensor, axis: int) -> Kept | None:
    """Return what is kept on an axis of the weight, None if that is all."""
    if mask is None:
        return None
    if not isinstance(mask, Mask):
        raise TypeError(f"{name} must be a dropfast.Mask or None, got {type(mask).__name__}")
    kept = mask._along()[1]
    if kept.length != weight.shape[axis]:
        raise ValueError(
            f"{name} must be of {weight.shape[axis]} units, for axis {axis} of weight, got one of {kept.length}"
        )
    return kept
