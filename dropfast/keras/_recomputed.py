"""The same mask once more, where a layer is called again because the backward pass needs what it has given.

That is what `keras.RematScope`, `keras.remat`, `tf.recompute_grad` and `torch.utils.checkpoint` do. (JAX keeps the
program instead, and with it the words of the mask.) Each of the two functions takes what it remembered of a layer's
masks, and how a new one is taken, and returns a mask that was not recomputed, or the one that was. If it cannot know
which that was, this is an error: the gradient of another mask looks like any other.
"""

from __future__ import annotations

import keras

if keras.config.backend() == "tensorflow":
    import tensorflow as tf
elif keras.config.backend() == "torch":
    import torch

    from dropfast.torch._private import is_functorch_active

import dataclasses
import itertools
import sys
from collections.abc import Callable
from types import CodeType, FrameType
from typing import Any

_REMEMBERED = 4096  # masks of a layer, the last ones


def _forget_the_oldest(taken: dict[int, Any]) -> None:
    if len(taken) > _REMEMBERED:
        del taken[next(iter(taken))]


def _unknown(why: str) -> RuntimeError:
    return RuntimeError(f"a dropout layer is computed again, and its mask is not known any more: {why}")


# ---- PyTorch -------------------------------------------------------------------------------------
#
# A checkpoint restores PyTorch's generator before it computes again. So a number is drawn from it for each mask, and
# when the same number comes in a backward pass, the same mask is meant.


@dataclasses.dataclass
class _Taken:
    mask: Any
    again: bool = False


def in_torch(taken: dict[int, Any], new: Callable[[], Any]) -> Any:
    """Return the next mask, or in a backward pass the one that the same state of PyTorch's generator has given."""
    is_backward = torch._C._current_graph_task_id() >= 0
    if is_functorch_active() and not is_backward:  # no checkpoint, and vmap wants to know of every random number
        return new()
    number = int(torch.empty((), dtype=torch.int64, device="cpu").random_())
    if not is_backward:
        before, mask = taken.pop(number, None), new()
        taken[number] = _Taken(mask if before is None or before.again else None)
        _forget_the_oldest(taken)
        return mask
    found = taken.get(number)
    if found is None:
        raise _unknown("checkpoints must keep preserve_rng_state=True, and backward passes call no layers themselves")
    if found.mask is None:
        raise _unknown("PyTorch's generator was set to the same state before two calls")
    found.again = True
    return found.mask


# ---- TensorFlow ----------------------------------------------------------------------------------
#
# tf.recompute_grad says to nobody that it is at work, so it is looked for among the callers. The dict with its keyword
# arguments is the same object when the function is called again, and made for this call alone.


@dataclasses.dataclass
class _Call:
    kwargs: dict[str, Any]  # held, so that no other can be where it is
    masks: list[Any] = dataclasses.field(default_factory=list)
    repeated: int = 0

    def repeat(self) -> Any:
        self.repeated += 1  # computed again in the same order, and perhaps more than once
        return self.masks[(self.repeated - 1) % len(self.masks)]


def in_tensorflow(taken: dict[int, Any], new: Callable[[], Any]) -> Any:
    """Return the next mask, or the one that this call of the layer had before `tf.recompute_grad` repeated it."""
    first, again = _callers()
    if again is None:
        mask = new()
    elif id(again) in taken:
        mask = taken[id(again)].repeat()
    else:
        raise _unknown(f"more than {_REMEMBERED} masks were taken since")
    for kwargs in first:
        taken.setdefault(id(kwargs), _Call(kwargs)).masks.append(mask)
        _forget_the_oldest(taken)
    return mask


def _callers() -> tuple[list[dict[str, Any]], dict[str, Any] | None]:
    """Return the calls of functions to be recomputed that are at work, up to one that is being recomputed, and that."""
    first = []
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        if frame.f_code is _FIRST:
            if not tf.executing_eagerly() and any(map(_is_eager, frame.f_locals["args"])):
                raise ValueError(
                    "a graph that is computed again takes another mask: recompute in the graph, got tf.recompute_grad "
                    "or keras.remat of a tf.function with dropout in it"
                )
            first.append(frame.f_locals["kwargs"])
        elif frame.f_code is _AGAIN:
            return first, frame.f_locals["kwargs"]
        frame = frame.f_back
    return first, None


def _is_eager(x: Any) -> bool:
    return bool(tf.is_tensor(x)) and not tf.is_symbolic_tensor(x)


def _inner(code: CodeType, *names: str) -> CodeType:
    """Return the code of a function in a function in ..., which has a variable kwargs."""
    for name in names:
        found = [c for c in code.co_consts if isinstance(c, CodeType) and c.co_name == name]
        if len(found) != 1:
            raise ImportError(f"TensorFlow {tf.__version__} lacks {name} in tf.recompute_grad, needed to repeat masks")
        (code,) = found
    if "kwargs" not in itertools.chain(code.co_cellvars, code.co_freevars):
        raise ImportError(f"TensorFlow {tf.__version__} lacks kwargs in tf.recompute_grad, needed to repeat masks")
    return code


if keras.config.backend() == "tensorflow":
    _FIRST = _inner(tf.recompute_grad.__code__, "inner")
    _AGAIN = _inner(_FIRST, "grad_wrapper", "inner_recompute_grad")
