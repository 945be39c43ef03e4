"""The short cut of eager mode, where the dispatcher would take longer than a small mask.

It is for tensors of which everything is known: dense memory of the CPU, and nobody but autograd who wants to know.
"""

from __future__ import annotations

import threading
from typing import Any

import torch
from torch import Tensor

from dropfast import _backend, _checks
from dropfast._checks import Recipe
from dropfast.torch import _abi, _private
from dropfast.torch._operators import ALL_64, FLOATS, KEYS, array_of, operators, state_of

# Anything else in a tensor's set of dispatch keys makes it special: other devices and layouts, negative, zero, nested,
# batched or functional ones, subclasses. Anything else in the thread's set is a mode, a tracer or a transform.
_OF_OTHER_TENSORS = ~_private.bits_of("CPU", "AutogradCPU", "AutocastCPU", "ADInplaceOrView")
_OF_OTHER_THREADS = ~_private.bits_of("BackendSelect", "ADInplaceOrView")


def is_plain(input: Tensor) -> bool:
    """Return whether NumPy may have this tensor's memory, and nobody but autograd needs to know."""
    return (
        input.dtype in FLOATS
        and not _private.dispatch_keys(input).raw_repr() & _OF_OTHER_TENSORS
        and not _private.included_keys().raw_repr() & _OF_OTHER_THREADS
    )


class _Cell(threading.local):
    """Where a thread's keys are drawn: a tensor that is there takes a third of the time of a new one."""

    def __init__(self) -> None:
        with torch.inference_mode(False):
            self.key = torch.empty((), dtype=torch.int64, device="cpu")


_cell = _Cell()


def plain_key(generator: torch.Generator | None = None) -> int:
    """Return the number that `new_key` would draw, where nobody but the generator needs to know."""
    return _cell.key.random_(*KEYS, generator=generator).item() & ALL_64  # type: ignore[no-any-return]


class _Apply(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, input: Tensor, recipe: Recipe, inplace: bool) -> Tensor:
        ctx.recipe, ctx.inplace = recipe, inplace
        if inplace:
            ctx.mark_dirty(input)
        return _write(input, recipe, inplace)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        return by_recipe(grad, ctx.recipe), None, None

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor, *_: None) -> Tensor:
        return by_recipe(tangent, ctx.recipe, ctx.inplace)


def _write(input: Tensor, recipe: Recipe, inplace: bool) -> Tensor:
    output = input if inplace else torch.empty_like(input)
    _backend.apply(array_of(input), array_of(output), recipe)
    return output


def by_plain_recipe(input: Tensor, recipe: Recipe, inplace: bool = False) -> Tensor:
    """Apply a recipe to a plain tensor."""
    if (input.requires_grad and torch.is_grad_enabled()) or _private.is_forward_ad_on():
        return _Apply.apply(input, recipe, inplace)  # type: ignore[no-any-return]
    if inplace and not input.is_inference():
        torch.autograd.graph.increment_version(input)
    return _write(input, recipe, inplace)


def drop_plain(
    input: Tensor, threshold: int, inplace: bool = False, generator: torch.Generator | None = None
) -> Tensor:
    """Drop elements of a plain tensor by a new mask, which is not shared along any axis."""
    small = 0 < input.numel() < _abi.LARGE and threshold < 1 << 32 and generator is None
    if small and _abi.are_compiled() and not _private.is_forward_ad_on():  # its node knows no tangents
        # A multiple of 2**-32, so that PyTorch computes the scale of the mask from it.
        output = _private.fused_dropout(input, 1 - threshold * 2.0**-32)[0]
        return input.copy_(output) if inplace else output
    shape = tuple(input.shape)
    strides, _ = _checks.sharing(shape, _checks.NO_AXES, None)
    return by_plain_recipe(input, (shape, strides, 0, plain_key(generator), 0, threshold), inplace)


def by_recipe(input: Tensor, recipe: Recipe, inplace: bool = False) -> Tensor:
    """Apply a recipe to any tensor that the operators take."""
    if not torch.compiler.is_compiling() and is_plain(input):
        return by_plain_recipe(input, recipe, inplace)
    _, strides, start, key, draw, threshold = recipe
    output = operators.apply(input, state_of(key, draw, start), strides, threshold)
    return input.copy_(output) if inplace else output  # type: ignore[no-any-return]
