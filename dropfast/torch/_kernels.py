"""Kernels for PyTorch's own operators: in C++ over its stable ABI where that is there, and in Python with these bits.

Autograd knows these operators: their nodes keep the mask, a byte an element, and compute without Python. That is the
short way of small tensors. `native_dropout` and its gradient are those of PyTorch's that have kernels on the CPU; ours
are for `enable`. `_fused_dropout` and `_masked_scale` have none there: they do the same for `dropout` and the layers.
"""

from __future__ import annotations

import ctypes
import math
import sys
import threading
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, library

from dropfast import _backend, _checks, _doors
from dropfast.torch import _private
from dropfast.torch._operators import ALL_64, FLOATS, array_of, new_key, strides_of

#: From so many elements on, nothing of a mask's size is kept: keeping it takes as long as computing it again, with
#: Python's time for that (forward and backward, 1 and 2 threads, rates 0.1 and 0.5, PyTorch 2.13: at 2**18 elements 0.5
#: to 0.9 of it, at 2**20 0.75 to 1, at 2**21 0.9 to 1.05).
LARGE = 1 << 20


#: The newest PyTorch whose class for errors of Python's, pybind11's, is known to be that of our kernels.
_NEWEST_KNOWN = 2, 14


def _link() -> tuple[bool, bool]:
    """Tell the kernels in C++ where PyTorch's functions are.

    Return whether these are all there, and whether errors of Python's, as hooks raise them, pass through the kernels.
    """
    native = _backend.native
    if native is None:
        return False, False
    torch_cpu = ctypes.CDLL("torch_cpu.dll" if sys.platform == "win32" else _private.extension_file)
    try:
        functions = [getattr(torch_cpu, name) for name in native.torch_functions]
    except AttributeError:
        return False, False
    errors_pass = native.has_known_errors and _doors.release(torch.__version__)[:2] <= _NEWEST_KNOWN
    addresses = [ctypes.cast(function, ctypes.c_void_p).value or 0 for function in functions]
    native.use_torch_functions(addresses, LARGE, errors_pass)
    return True, errors_pass


_are_there, _errors_pass = _link()


def are_compiled() -> bool:
    """Return whether the kernels in C++ are in force."""
    return _are_there and _backend.active is _backend.native


class Compiled:
    """Kernels in C++ for operators of PyTorch's, until they are taken back."""

    def __init__(self, operators: tuple[str, ...], *keys: str) -> None:
        assert _backend.native
        self._native = _backend.native
        self._libraries = [self._native.implement_in_torch(operators, key) for key in keys]

    def destroy(self) -> None:
        """Take them back."""
        while self._libraries:
            self._native.forget_in_torch(self._libraries.pop())


if _are_there:
    _own = Compiled(("_fused_dropout", "_masked_scale"), "CPU")


# ---- errors --------------------------------------------------------------------------------------


def let_errors_pass() -> bool:
    """Return whether kernels in C++ may call what raises errors of Python's, and leave them what they are."""
    return are_compiled() and _errors_pass


class _Raised(threading.local):
    error: BaseException | None = None


_raised = _Raised()


def from_cxx(kernel: Callable[..., Any]) -> Callable[..., Any]:
    """Return a kernel that keeps what it raises, of which PyTorch's functions for C leave no more than the words."""

    def call(*args: Any) -> Any:
        try:
            return kernel(*args)
        except BaseException as error:
            _raised.error = error
            raise

    return call


def take_raised() -> BaseException | None:
    """Return what was kept last in this thread, once."""
    error, _raised.error = _raised.error, None
    return error


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
_LIBRARY.define("any_native_dropout(Tensor input, float p, bool? train) -> (Tensor, Tensor)")
_LIBRARY.define("any_native_dropout_backward(Tensor grad_output, Tensor mask, float scale) -> Tensor")
_LIBRARY.impl("any_native_dropout", from_cxx(native_dropout), "CPU")
_LIBRARY.impl("any_native_dropout_backward", from_cxx(native_dropout_backward), "CPU")
