"""The handler of csrc/jax_ffi.cpp: whether it is there, and suits this jaxlib."""

from __future__ import annotations

import contextlib
import functools
import re
import warnings
from pathlib import Path

import jax

from dropfast import _backend


def road() -> str:
    """Return how XLA reaches the kernels on this machine.

    Returns
    -------
    str
        ``"ffi"`` if by the compiled handler, ``"callback"`` if by way of Python, which gives the same bits, but costs
        more for each call and needs the GIL: because the handler was not built, does not suit this jaxlib (which a
        RuntimeWarning has said then), or DROPFAST_BACKEND asks for NumPy.

    Examples
    --------
    >>> from dropfast.jax import road
    >>> road() in ("ffi", "callback")
    True
    """
    return "ffi" if _backend.active is _backend.native and is_registered() else "callback"


@functools.cache
def is_registered() -> bool:
    """Register the handler with XLA, once. A handler that is broken is an error, one that is refused a warning."""
    try:
        import dropfast._jax_ffi as module
    except ModuleNotFoundError as error:
        if error.name != "dropfast._jax_ffi":
            raise
        return False
    # Handlers that are registered before JAX has a backend are looked at when it gets one: a handler that was built for
    # another version of XLA's interface would then be the end of the backend, and not just of itself.
    if not _suits(module.API_VERSION):
        jax.devices("cpu")
    try:
        jax.ffi.register_ffi_target("dropfast", module.handler, platform="cpu")
    except Exception as error:
        built_for = ".".join(map(str, module.API_VERSION))
        warnings.warn(
            f"dropfast.jax calls its kernels by way of Python, which is slower: the handler was built for version "
            f"{built_for} of XLA's FFI, and jaxlib {jax.lib.__version__} refuses it. Build dropfast with the headers "
            f"of this jaxlib or an older one (docs/jax.md). {error}",
            RuntimeWarning,
            stacklevel=2,
        )
        return False
    return True


def _suits(version: tuple[int, int]) -> bool:
    """Return whether this jaxlib's headers say that it takes handlers of a version of XLA's interface."""
    try:
        header = Path(jax.ffi.include_dir(), "xla", "ffi", "api", "c_api.h").read_text(encoding="utf-8")
    except OSError:
        return False
    found = dict(re.findall(r"^#define XLA_FFI_API_(MAJOR|MINOR) (\d+)$", header, re.MULTILINE))
    return version[0] == int(found.get("MAJOR", -1)) and version[1] <= int(found.get("MINOR", -1))


# Programs that were exported, and are loaded here, find their handler. The tests, and what else may say that there is
# no handler, do so later: whether it can be had is asked whenever a program is lowered.
with contextlib.suppress(ImportError):
    import dropfast._jax_ffi as _module

    if _suits(_module.API_VERSION):
        is_registered()
