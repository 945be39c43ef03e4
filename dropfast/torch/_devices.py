"""Devices that the kernels are not for: stream v1 as PyTorch's own operations, or as one kernel of Triton's.

A GPU of NVIDIA's or AMD's in eager mode has Triton's kernel, if Triton is installed. Any other device, and what is
compiled for whichever, has the portable text, which compilers make a part of the loops around it.
"""

from __future__ import annotations

import functools
import importlib.util
import sys
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from dropfast import _checks, _portable
from dropfast._portable import LOW, Array

#: What PyTorch calls them, and its dispatcher.
DEVICES = {"cuda": "CUDA", "mps": "MPS", "xpu": "XPU"}


class Arrays(_portable.Unrolled):
    """PyTorch's tensors on a device, for the portable text."""

    def __init__(self, device: torch.device) -> None:
        self.device = device

    def words(self, numbers: list[int]) -> Array:
        return torch.tensor(numbers, dtype=torch.int64, device=self.device)

    def arange(self, n: Any) -> Array:
        return torch.arange(n, dtype=torch.int64, device=self.device)

    def where(self, condition: Array, a: Array, b: Any) -> Array:
        return torch.where(condition, a, b)

    def cast(self, array: Array, dtype: Any) -> Array:
        return array.to({"word": torch.int64, "uint8": torch.uint8}.get(dtype, dtype))

    def widened(self, x: Array) -> Array:
        return x.to(torch.float32) if x.dtype.itemsize == 2 else x

    def stack(self, arrays: list[Array]) -> Array:
        return torch.stack(arrays, dim=-1)

    def concatenate(self, arrays: list[Array]) -> Array:
        return torch.cat(arrays, dim=-1)

    def reshape(self, array: Array, shape: tuple[Any, ...]) -> Array:
        return array.reshape(shape)

    def right(self, words: Array, by: Any) -> Array:
        return words >> by

    def left(self, words: Array, by: Any) -> Array:
        return words << by


def _words(numbers: Tensor) -> tuple[Tensor, Tensor]:
    """Return the high and the low 32 bits."""
    return numbers >> 32 & LOW, numbers & LOW


def apply(input: Tensor, state: Tensor, strides: Sequence[int], threshold: int) -> Tensor:
    """Do what the operator does, in operations that every device has and every compiler knows."""
    key, draw, start = state.to(input.device).reshape(-1, 3).unbind(-1)
    masks = state.shape[:-1]
    shape, xp = tuple(input.shape[len(masks) :]), Arrays(input.device)
    kept = _portable.keep(xp, shape, tuple(strides), _words(start), _words(key), draw, threshold)
    return _portable.select(xp, input, kept.reshape((*masks, *kept.shape[1:])), _checks.scale(threshold))


@functools.cache
def _is_installed() -> bool:
    return importlib.util.find_spec("triton") is not None


def has_triton() -> bool:
    """Return whether Triton can be used: imported after TensorFlow, it ends the process, for both have an LLVM."""
    return "triton" in sys.modules or ("tensorflow" not in sys.modules and _is_installed())


def apply_on_gpu(input: Tensor, state: Tensor, strides: Sequence[int], threshold: int) -> Tensor:
    """Do what the operator does on CUDA's devices: in one pass, if it is one mask and there is Triton."""
    if state.ndim > 1 or not has_triton():
        return apply(input, state, strides, threshold)
    from dropfast.torch import _triton

    key, draw, start = state.tolist()
    return _triton.apply(input, (tuple(input.shape), tuple(strides), start, key & (1 << 64) - 1, draw, threshold))


def refuse_capture() -> None:
    """Refuse to draw a key where a CUDA graph is captured."""
    if torch.cuda.is_initialized() and torch.cuda.is_current_stream_capturing():
        raise RuntimeError(
            "dropout cannot be captured in a CUDA graph, whose replays would all have one mask; "
            "a mask with a name can, by dropfast.torch.apply"
        )
