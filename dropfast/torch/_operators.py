"""The operators: pure functions of tensors, for whoever traces, compiles, transforms or repeats what a program does.

A state is an int64 tensor (key, draw, index of the first element), with the key's bits as a signed number. There may
be many, on axes in front; the input then has these axes in front too.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, library
from torch.fx.traceback import get_current_meta
from torch.utils.checkpoint import CheckpointPolicy

from dropfast import _backend
from dropfast.torch import _abi, _devices, _private

ALL_64 = (1 << 64) - 1
KEYS = -(1 << 63), (1 << 63) - 1  # as signed numbers
FLOATS = frozenset((torch.float16, torch.bfloat16, torch.float32, torch.float64))

LIBRARY = library.Library("dropfast", "DEF")
_PURE, _RANDOM = torch.Tag.pt2_compliant_tag, torch.Tag.nondeterministic_seeded
LIBRARY.define("apply(Tensor input, Tensor state, SymInt[] strides, int threshold) -> Tensor", tags=(_PURE,))
# Compilers look at the argument to know on which device this is random: on the CPU, whatever the mask is for.
LIBRARY.define("new_state(Tensor input) -> Tensor", tags=(_PURE, _RANDOM))
# What compiled graphs have of `apply`, with gradients of their own: no more than the kernel, where that is in C++.
LIBRARY.define("apply_in_graph(Tensor input, Tensor state, SymInt[] strides, int threshold) -> Tensor", tags=(_PURE,))
LIBRARY.define("dropout(Tensor input, int threshold, int[] shared_axes) -> Tensor", tags=(_PURE, _RANDOM))
operators = torch.ops.dropfast


def array_of(tensor: Tensor) -> npt.NDArray[Any]:
    """Return NumPy's view of a tensor's memory."""
    if tensor.dtype is torch.bfloat16:
        import ml_dtypes

        return tensor.view(torch.int16).numpy().view(ml_dtypes.bfloat16)  # type: ignore[no-any-return]
    return tensor.numpy()  # type: ignore[no-any-return]


# ---- the state of a mask -------------------------------------------------------------------------


def state_of(key: int, draw: int, start: int = 0) -> Tensor:
    """Return the state of a mask that has a name."""
    return torch.tensor((key - (key >> 63 << 64), draw, start), dtype=torch.int64, device="cpu")


def new_key(generator: torch.Generator | None = None) -> Tensor:
    """Return 64 random bits; under torch.vmap, for each example its own if that is what it wants."""
    return torch.randint(*KEYS, (), dtype=torch.int64, device="cpu", generator=generator)


def new_state(generator: torch.Generator | None = None) -> Tensor:
    """Return the state of a new mask."""
    _devices.refuse_capture()
    key = new_key(generator)
    zero = torch.zeros_like(key)
    return torch.stack((key, zero, zero), -1)


def moved(state: Tensor, by: int) -> Tensor:
    """Return the state of a mask's part, which begins so many elements behind the whole."""
    key, draw, start = state.unbind(-1)
    return torch.stack((key, draw, start + by), -1)


@contextmanager
def _saved_for_backward() -> Iterator[None]:
    """Forbid compilers to repeat for the backward pass what is traced now: another key would be another mask."""
    if _private.memory_budget() == 0 and _private.is_compiling():
        raise RuntimeError(
            "dropout cannot be compiled with torch._functorch.config.activation_memory_budget = 0, where a backward "
            "pass has nothing but the inputs, and so would draw another mask: give it a little, as 0.01"
        )
    meta = get_current_meta()
    before = meta.get("recompute")
    meta["recompute"] = CheckpointPolicy.MUST_SAVE
    try:
        yield
    finally:
        meta.pop("recompute") if before is None else meta.update(recompute=before)


def strides_of(shape: Sequence[int], shared_axes: Sequence[int]) -> tuple[int, ...]:
    """Return the strides of the index in a mask, as `_checks.sharing` does, for lengths that may be symbols."""
    strides, stride = [0] * len(shape), 1
    for axis in reversed(range(len(shape))):
        if axis not in shared_axes:
            strides[axis] = stride
            stride = stride * shape[axis]
    return tuple(strides)


def is_sharded(input: Tensor) -> bool:
    """Return whether a tensor is spread over ranks, so that each has a window of its mask."""
    distributed = sys.modules.get("torch.distributed.tensor")  # where DTensors are, it is
    if distributed is None or not isinstance(input, distributed.DTensor):
        return False
    from dropfast.torch import _sharded

    _sharded.check(input)
    return True


def dropout(
    input: Tensor, threshold: int, shared_axes: Sequence[int], generator: torch.Generator | None = None
) -> Tensor:
    """Return `input` with a new mask applied, in operators."""
    is_sharded(input)  # or refused, which compilers find out here
    if generator is not None or _private.is_functorch_active():
        state = new_state(generator)
    else:
        with _saved_for_backward():
            state = operators.new_state(
                torch.empty(0, device="cpu") if input.device.type in _devices.DEVICES else input
            )
    return operators.apply(input, state, strides_of(input.shape, shared_axes), threshold)  # type: ignore[no-any-return]


# ---- what they do --------------------------------------------------------------------------------


def _apply_on_cpu(input: Tensor, state: Tensor, strides: Sequence[int], threshold: int) -> Tensor:
    input, output = input.detach(), torch.empty_like(input, requires_grad=False)
    x, out, states = array_of(input), array_of(output), state.numpy()
    for place in np.ndindex(states.shape[:-1]):
        key, draw, start = states[place].tolist()
        part = x[(*place, ...)]
        recipe = part.shape, tuple(strides), start, key & ALL_64, draw, threshold
        _backend.apply(part, out[(*place, ...)], recipe)
    return output


class _Gradients:
    """All of them are the same mask once more."""

    @staticmethod
    def forward(ctx: Any, call: Any, *args: Any) -> Tensor:
        _, state, *ctx.rest = args
        ctx.save_for_backward(state)
        ctx.save_for_forward(state)
        return call(*args)  # type: ignore[no-any-return]

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        return None, operators.apply(grad, *ctx.saved_tensors, *ctx.rest), None, None, None

    @staticmethod
    def jvp(ctx: Any, _: None, tangent: Tensor, *__: None) -> Tensor:
        return operators.apply(tangent, *ctx.saved_tensors, *ctx.rest)  # type: ignore[no-any-return]


class _Apply(_Gradients, torch.autograd.Function):
    pass


class _ApplyAtOneLevel(_Gradients, _private.SingleLevelFunction):  # type: ignore[misc]
    """For one transform of torch.func, as the formulas of PyTorch's own operators: the others follow by themselves."""


def _is_a_compilers_own(input: Tensor) -> bool:
    """Return whether a compiler is to see what the operator does: it fuses that on devices without kernels."""
    return input.device.type in _devices.DEVICES and _private.is_compiling() and not torch.compiler.is_exporting()


def _is_for_a_graph(input: Tensor) -> bool:
    """Return whether a compiler makes a graph that has gradients of its own, and runs where the kernels in C++ are."""
    return (
        _abi.are_compiled()
        and _private.is_compiling()
        and not torch.compiler.is_exporting()
        and not _private.is_functorch_active()
        and not _private.is_wrapper(input)
    )


def _apply_with_gradients(keys: Any, *args: Any) -> Tensor:
    def call(*args: Any) -> Tensor:
        with (
            torch.set_grad_enabled(with_gradients),
            _private.set_fwd_grad_enabled(with_tangents),
            _private.BelowAutograd(),
        ):
            if _is_a_compilers_own(args[0]):
                return _devices.apply(*args)
            if _is_for_a_graph(args[0]):
                return operators.apply_in_graph(*args)  # type: ignore[no-any-return]
            return operators.apply.default.redispatch(  # type: ignore[no-any-return]
                keys & _private.keys_after_autograd, *args
            )

    with_gradients, with_tangents = torch.is_grad_enabled(), _private.is_fwd_grad_enabled()
    if _private.is_functorch_active():
        with _private.single_level_functions():
            return _ApplyAtOneLevel.apply(call, *args)  # type: ignore[no-any-return]
    if (with_gradients and args[0].requires_grad) or _private.is_forward_ad_on():
        return _Apply.apply(call, *args)  # type: ignore[no-any-return]
    return call(*args)


def _apply_of_many(
    info: Any, in_dims: tuple[int | None, ...], input: Tensor, state: Tensor, strides: Sequence[int], threshold: int
) -> tuple[Tensor, int]:
    input = input.expand(info.batch_size, *input.shape) if in_dims[0] is None else input.movedim(in_dims[0], 0)
    if in_dims[1] is not None:
        return operators.apply(input, state.movedim(in_dims[1], 0), strides, threshold), 0
    behind_states = state.ndim - 1
    return operators.apply(input.movedim(0, behind_states), state, (0, *strides), threshold), behind_states


LIBRARY.impl("apply", _apply_on_cpu, "CPU")
for _device, _its_key in _devices.DEVICES.items():
    LIBRARY.impl("apply", _devices.apply_on_gpu if _device == "cuda" else _devices.apply, _its_key)
LIBRARY.impl("apply", _apply_with_gradients, "Autograd", with_keyset=True)
LIBRARY.impl("apply_in_graph", library.fallthrough_kernel, "Autograd")
if _abi.are_compiled():
    _compiled = _abi.Compiled("dropfast", ("new_state", "apply_in_graph"), "CPU")
    for _schema, _kernel in (  # what they leave to Python: keys for other devices, many masks, tangents and more
        ("any_new_state(Tensor input) -> Tensor", lambda input: new_state()),
        ("any_apply(Tensor input, Tensor state, SymInt[] strides, int threshold) -> Tensor", operators.apply),
    ):
        _abi.define_for_cxx(LIBRARY, _schema, _kernel)
else:
    LIBRARY.impl("new_state", lambda input: new_state(), "CPU")
    LIBRARY.impl("apply_in_graph", operators.apply, "CPU")
LIBRARY.impl("dropout", dropout, "CompositeImplicitAutograd")
LIBRARY.impl("dropout", dropout, "FuncTorchVmapMode")  # also where no input is batched: each example has its own key
for _name in "apply", "apply_in_graph":
    library.register_fake(f"dropfast::{_name}", lambda input, *_: torch.empty_like(input), lib=LIBRARY)
library.register_fake("dropfast::new_state", lambda input: input.new_empty(3, dtype=torch.int64), lib=LIBRARY)
library.register_vmap("dropfast::apply", _apply_of_many, lib=LIBRARY)
