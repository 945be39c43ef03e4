"""The handler for XLA (csrc/jax_ffi.cpp), where it was built; what it does is said in `dropfast.jax`."""

from typing import Any

API_VERSION: tuple[int, int]  # of XLA's FFI, as in the headers that it was built with
handler: Any  # PyCapsule holding the function
