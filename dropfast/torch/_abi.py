"""PyTorch's stable ABI, by which its operators and ours have kernels in C++ (csrc/torch_ops.cpp), where it is there."""

from __future__ import annotations

import ctypes
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from dropfast import _backend, _doors
from dropfast.torch import _private

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
    if native is None or not native.torch_functions:
        return False, False
    on_windows = Path(torch.__file__).parent / "lib" / "torch_cpu.dll"  # where names are looked up in one file, not all
    torch_cpu = ctypes.CDLL(str(on_windows) if sys.platform == "win32" else _private.extension_file)
    try:
        functions = [getattr(torch_cpu, name) for name in native.torch_functions]
    except AttributeError:
        return False, False
    errors_pass = native.has_known_errors and _doors.release(torch.__version__)[:2] <= _NEWEST_KNOWN
    addresses = [ctypes.cast(function, ctypes.c_void_p).value or 0 for function in functions]
    native.use_torch_functions(addresses, LARGE, errors_pass)
    return True, errors_pass


is_there, _errors_pass = _link()


def are_compiled() -> bool:
    """Return whether the kernels in C++ are in force."""
    return is_there and _backend.active is _backend.native


def let_errors_pass() -> bool:
    """Return whether kernels in C++ may call what raises errors of Python's, and leave them what they are."""
    return are_compiled() and _errors_pass


class Compiled:
    """Kernels in C++ for operators of a namespace, until they are taken back."""

    def __init__(self, name_space: str, operators: tuple[str, ...], *keys: str) -> None:
        assert _backend.native
        self._native = _backend.native
        self._libraries = [self._native.implement_in_torch(name_space, operators, key) for key in keys]

    def destroy(self) -> None:
        """Take them back."""
        while self._libraries:
            self._native.forget_in_torch(self._libraries.pop())


# ---- errors --------------------------------------------------------------------------------------


class _Raised(threading.local):
    error: BaseException | None = None


_raised = _Raised()


def define_for_cxx(
    library: torch.library.Library,
    schema: str,
    kernel: Callable[..., Any],
    dispatch_key: str = "CompositeImplicitAutograd",
) -> str:
    """Define an operator that kernels in C++ call for what they leave to Python, and return its name.

    It keeps what it raises, of which PyTorch's functions for C leave no more than the words.
    """

    def call(*args: Any) -> Any:
        try:
            return kernel(*args)
        except BaseException as error:
            _raised.error = error
            raise

    library.define(schema)
    name = schema.partition("(")[0]
    library.impl(name, call, dispatch_key)
    return name


def take_raised() -> BaseException | None:
    """Return what was kept last in this thread, once."""
    error, _raised.error = _raised.error, None
    return error
