"""The floating-point mode that results are promised for; frameworks have their threads flush subnormals to zero."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress

_FENV_BYTES = 64  # more than any platform's fenv_t
_at_import = ctypes.create_string_buffer(_FENV_BYTES)
_libm: ctypes.CDLL | None = None
with suppress(TypeError, OSError, AttributeError):  # a Python that does not show the C library's names
    _names = ctypes.CDLL("ucrtbase" if os.name == "nt" else None)
    _names.fegetenv(_at_import)
    _libm = _names


@contextmanager
def default_mode() -> Iterator[None]:
    """Compute, in this thread, as at import; afterwards its mode and status flags are as they were."""
    if _libm is None:
        yield
        return
    callers = ctypes.create_string_buffer(_FENV_BYTES)
    _libm.fegetenv(callers)
    _libm.fesetenv(_at_import)
    try:
        yield
    finally:
        _libm.fesetenv(callers)
