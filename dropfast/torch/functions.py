"""What there is to call: `apply` and `dropout`."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, SupportsIndex

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional
from torch.overrides import handle_torch_function, has_torch_function_unary

from dropfast import _checks, _doors
from dropfast._mask import Mask
from dropfast.torch import _devices, _operators, _private
from dropfast.torch._eager import by_plain_recipe, by_recipe, drop_plain, is_plain, plain_key
from dropfast.torch._operators import FLOATS, is_sharded, operators


def probability(p: Any) -> float:
    """Return a probability as a float, if it is one."""
    if isinstance(p, bool):
        raise TypeError(f"dropout probability has to be a number, but got {p}")
    if type(p) is not float:
        if not isinstance(p, (float, int, np.integer, np.floating, Tensor)):
            raise TypeError(f"p must be a real number, or a tensor or an array scalar of one, got {type(p).__name__}")
        p = float(p)
    if not 0.0 <= p <= 1.0:
        raise ValueError(f"dropout probability has to be between 0 and 1, but got {p}")
    return p  # type: ignore[no-any-return]


def apply(mask: Mask, input: Tensor) -> Tensor:
    """Return `input` with a mask applied, as `mask.apply` does for arrays, and its gradient with the same mask.

    Parameters
    ----------
    mask : dropfast.Mask
        Of the shape of `input`; a window of a larger mask, too.
    input : torch.Tensor
        float16, bfloat16, float32 or float64, dense, with any strides, on the CPU, CUDA, MPS or XPU; a DTensor too.

    Returns
    -------
    torch.Tensor
        A new tensor: ``input * scale`` where kept, +0.0 where dropped.

    Raises
    ------
    TypeError
        If `mask` is no mask, or `input` no tensor, or one with a layout or a dtype that is not allowed.
    ValueError
        If `input` does not have the mask's shape, is on another device, or is a DTensor that has yet to be summed.

    Notes
    -----
    Bit for bit what ``mask.apply(input.numpy())`` gives. Only the mask's few numbers are kept for the backward pass. It
    can be differentiated any number of times, in both modes, and works with `torch.compile`, `torch.func` and tracers;
    for `torch.vmap` it is not random, so all examples have the same mask.

    Examples
    --------
    >>> import torch
    >>> import dropfast.torch
    >>> mask = dropfast.Mask((2, 6), 0.5, key=7)
    >>> dropfast.torch.apply(mask, torch.ones(2, 6))
    tensor([[2., 0., 2., 2., 0., 2.],
            [0., 0., 0., 2., 0., 2.]])
    """
    if not isinstance(mask, Mask):
        raise _checks.not_a_mask(mask)
    if has_torch_function_unary(input):
        return handle_torch_function(apply, (input,), mask, input)  # type: ignore[no-any-return]
    _check_tensor(input)
    if not _is_on_ours(input):
        raise ValueError(f"input must be on the CPU, CUDA, MPS or XPU, got one on {input.device}")
    if not _is_dense(input):
        raise TypeError(f"input must be dense, got {'a nested tensor' if input.is_nested else input.layout}")
    if input.dtype not in FLOATS:
        raise _wrong_dtype(input)
    if input.shape != mask.shape:
        raise ValueError(f"input must have the mask's shape {mask.shape}, got {tuple(input.shape)}")
    is_sharded(input)
    return by_recipe(input, mask._recipe)


def dropout(
    input: Tensor,
    p: float = 0.5,
    training: bool = True,
    inplace: bool = False,
    *,
    shared_axes: SupportsIndex | Iterable[SupportsIndex] = (),
    noise_shape: Iterable[SupportsIndex | None] | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Zero elements of `input` at random, and scale the others so that the mean stays.

    Parameters
    ----------
    input : torch.Tensor
        Of any floating dtype, device and layout. The masks are dropfast's for dense float16, bfloat16, float32 and
        float64 with any strides, on the CPU, CUDA, MPS and XPU, and for DTensors, of which each rank has its window of
        one mask; for others PyTorch's own dropout is called.
    p : float, default 0.5
        Probability that an element is zeroed, in [0, 1], with a resolution of 2**-32. May be a tensor of one number.
    training : bool, default True
        False returns `input` itself, whatever it is; so does p = 0.
    inplace : bool, default False
        Whether to write into `input`.
    shared_axes : int or tuple of ints, default ()
        Axes along which all elements share their fate. ``0`` zeroes the same units for the whole batch.
    noise_shape : tuple of int or None, optional
        The same in TensorFlow's words: the shape of the mask, with 1 on shared axes and the full length, or None, on
        others. Give this or `shared_axes`.
    generator : torch.Generator, optional
        Where the mask's key comes from, one of the CPU's whatever the input's device; PyTorch's default one if not
        given, so that `torch.manual_seed` decides, which has to be called alike on all ranks of a DTensor.

    Returns
    -------
    torch.Tensor
        `input` if `inplace`, else a new tensor: ``input * scale`` where kept, +0.0 where dropped.

    Raises
    ------
    TypeError
        If `p` is no number or `input` no tensor, or one of integers.
    ValueError
        If `p` is not in [0, 1], if `shared_axes` or `noise_shape` do not fit the input, if a `generator` is given
        for a tensor that is not dropfast's, or if the input is a DTensor that has yet to be summed.
    RuntimeError
        If `inplace`, and `input` is a leaf that requires a gradient.

    Notes
    -----
    Each call takes one random number from the generator, and so differs from the next. Only that number is kept for the
    backward pass.

    Examples
    --------
    >>> import torch
    >>> import dropfast.torch
    >>> _ = torch.manual_seed(0)
    >>> dropfast.torch.dropout(torch.ones(2, 6), 0.5, shared_axes=0)
    tensor([[0., 0., 0., 2., 2., 2.],
            [0., 0., 0., 2., 2., 2.]])
    """
    if has_torch_function_unary(input):
        sharing = {"shared_axes": shared_axes, "noise_shape": noise_shape, "generator": generator}
        return handle_torch_function(dropout, (input,), input, p, training, inplace, **sharing)  # type: ignore[no-any-return]
    if type(p) is not float or not 0.0 <= p <= 1.0:
        p = probability(p)
    if not training or p == 0.0:
        return input
    if torch.compiler.is_compiling() or not isinstance(input, Tensor) or not is_plain(input):
        return _dropout_of_any(input, p, inplace, shared_axes, noise_shape, generator)
    if inplace:
        check_leaf(input)
    threshold = _checks.threshold(p)
    if shared_axes is _checks.NO_AXES and noise_shape is None:
        return drop_plain(input, threshold, inplace, generator)
    shape = tuple(input.shape)
    strides, _ = _checks.sharing(shape, shared_axes, noise_shape)
    return by_plain_recipe(input, (shape, strides, 0, plain_key(generator), 0, threshold), inplace)


dropout.__prepare_scriptable__ = lambda: functional.dropout  # type: ignore[attr-defined]  # for torch.jit.script


# ---- what is not plain ---------------------------------------------------------------------------


def _check_tensor(input: Any) -> None:
    if not isinstance(input, Tensor):
        raise TypeError(f"input must be a torch.Tensor, got {type(input).__name__}{_doors.hint(input)}")


def check_leaf(input: Tensor) -> None:
    """Refuse to write into a leaf, in PyTorch's words; it finds out only after a Function has written."""
    if input.requires_grad and torch.is_grad_enabled():
        if input.is_leaf:
            raise RuntimeError("a leaf Variable that requires grad is being used in an in-place operation.")
        if input._is_view() and input._base.is_leaf:
            raise RuntimeError("a view of a leaf Variable that requires grad is being used in an in-place operation.")


def _is_dense(input: Tensor) -> bool:
    return input.layout is torch.strided and not input.is_nested


def _is_on_ours(input: Tensor) -> bool:
    return input.device.type == "cpu" or input.device.type in _devices.DEVICES


def _axes_of(
    shape: Sequence[int],
    shared_axes: SupportsIndex | Iterable[SupportsIndex],
    noise_shape: Iterable[SupportsIndex | None] | None,
) -> tuple[int, ...]:
    """Return which axes are shared, as `_checks.sharing` does, for lengths that may be symbols."""
    axes, lengths = _checks.sharing_of_any_shape(shared_axes, noise_shape)
    if lengths is None:
        return _checks.axes_in(len(shape), axes)
    if len(lengths) != len(shape) or any(n not in (None, 1, full) for n, full in zip(lengths, shape, strict=True)):
        _checks.sharing(tuple(shape), (), lengths)  # raises
    return tuple(axis for axis, n in enumerate(lengths) if n == 1)


def _dropout_of_any(
    input: Tensor,
    p: float,
    inplace: bool,
    shared_axes: SupportsIndex | Iterable[SupportsIndex],
    noise_shape: Iterable[SupportsIndex | None] | None,
    generator: torch.Generator | None,
) -> Tensor:
    """Drop by an operator, ours or PyTorch's."""
    _check_tensor(input)
    if not is_ours(input):
        return _dropout_of_torch(input, p, inplace, shared_axes, noise_shape, generator)
    axes = _axes_of(input.shape, shared_axes, noise_shape)
    threshold = _checks.threshold(p)
    graph = torch.compiler.is_compiling()
    if generator is not None and (graph or torch.jit.is_tracing()):
        raise ValueError("generator cannot be given in code that is compiled, exported or traced by torch.jit")
    if not graph and (generator is not None or _private.is_functorch_active()):
        output = _operators.dropout(input, threshold, axes, generator)
    else:
        output = operators.dropout(input, threshold, axes)
    return input.copy_(output) if inplace else output  # type: ignore[no-any-return]


def is_ours(input: Tensor) -> bool:
    """Return whether our operators are for a tensor, which may stand for one in a compiler."""
    if not _is_on_ours(input) or not _is_dense(input) or (_private.is_wrapper(input) and not is_sharded(input)):
        return False
    if input.dtype not in FLOATS:
        raise _wrong_dtype(input)
    return not _is_for_onnx()


def _is_for_onnx() -> bool:
    """Return whether this will run where there is no dropfast, and ONNX has a dropout of its own."""
    return (torch.compiler.is_exporting() or torch.jit.is_tracing()) and torch.onnx.is_in_onnx_export()  # type: ignore[no-any-return]


def _wrong_dtype(input: Tensor) -> TypeError:
    allowed = "torch.float16, torch.bfloat16, torch.float32 or torch.float64"
    return TypeError(f"input must have dtype {allowed}, got {input.dtype}")


def _dropout_of_torch(
    input: Tensor,
    p: float,
    inplace: bool,
    shared_axes: SupportsIndex | Iterable[SupportsIndex],
    noise_shape: Iterable[SupportsIndex | None] | None,
    generator: torch.Generator | None,
) -> Tensor:
    """Drop by PyTorch's own code."""
    what = f"{type(input).__name__} of {input.dtype}, {input.layout}, on {input.device}"
    if generator is not None:
        raise ValueError(f"generator can be given only for tensors that dropfast takes, got a {what}")
    if noise_shape is None and _checks.integers("shared_axes", shared_axes) == ():
        return functional.dropout(input, p, True, inplace)
    if not _is_dense(input):
        raise ValueError(f"axes can be shared only in dense tensors, got a {what}")
    if _is_for_onnx():  # whose optimizer takes the dropout of ones for a constant
        raise ValueError("axes cannot be shared in what is exported to ONNX for training")
    axes = _axes_of(input.shape, shared_axes, noise_shape)
    ones = input.new_ones([1 if axis in axes else n for axis, n in enumerate(input.shape)])
    noise = functional.dropout(ones, p)
    return input.mul_(noise) if inplace else input * noise
