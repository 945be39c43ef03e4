"""The short cut of eager mode, where the dispatcher would take longer than a small mask.

It is for tensors of which everything is known: dense memory of the CPU, and nobody but autograd who wants to know.
"""

from __future__ import annotations

import threading
from typing import Any

import torch
from torch import Tensor

from dropfast import _backend
from dropfast._checks import Recipe
from dropfast.torch import _private
from dropfast.torch._operators import ALL_64, KEYS, array_of, operators, state_of

FLOATS = frozenset((torch.float16, torch.bfloat16, torch.float32, torch.float64))

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


def by_recipe(input: Tensor, recipe: Recipe, inplace: bool = False) -> Tensor:
    """Apply a recipe to any tensor that the operators take."""
    if not torch.compiler.is_compiling() and is_plain(input):
        return by_plain_recipe(input, recipe, inplace)
    _, strides, start, key, draw, threshold = recipe
    output = operators.apply(input, state_of(key, draw, start), strides, threshold)
    return input.copy_(output) if inplace else output  # type: ignore[no-any-return]
