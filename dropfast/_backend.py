"""The choice of backend, made once at import: the compiled one if it is installed, else its twin in NumPy."""

from __future__ import annotations

import importlib
import os
from typing import Protocol

import numpy as np
import numpy.typing as npt

from dropfast import _numpy
from dropfast._checks import Recipe


class Backend(Protocol):
    """What a backend is: two functions. Both backends give the same bits."""

    def apply(self, x: object, out: object, recipe: Recipe) -> bool:
        """Write `x * scale` into `out` where the mask keeps and +0.0 where it drops.

        False, with nothing written, if these are not arrays that it can take: `_checks.fault` knows why.
        """

    def packed(self, out: npt.NDArray[np.uint8], recipe: Recipe) -> None:
        """Write the bits of the mask in C order (1 = kept, little bit order)."""


def _import_native() -> Backend | None:
    """Return the compiled backend, or None if it was not built. One that is broken is an error, not a slow day."""
    try:
        return importlib.import_module("dropfast._native")
    except ModuleNotFoundError as error:
        if error.name != "dropfast._native":
            raise
        return None


native = _import_native()
active: Backend = _numpy if native is None else native


def available() -> tuple[str, ...]:
    """Return the names that `use` takes on this machine, best first: 'native:avx2', ..., 'numpy'."""
    isas = [] if native is None else [f"native:{isa}" for isa in native.isas()]
    return (*isas, "numpy")


def current() -> str:
    """Return the name of the backend in use."""
    return "numpy" if active is _numpy else f"native:{native.isa()}"


def use(name: str) -> None:
    """Switch to a backend of `available()`, for this whole process. For tests and benchmarks."""
    global active
    if name not in available():
        raise ValueError(f"backend must be one of {', '.join(available())}, got {name!r}")
    if name == "numpy":
        active = _numpy
    else:
        active = native
        native.use_isa(name.partition(":")[2])


def _use_environment() -> None:
    """Obey DROPFAST_BACKEND and DROPFAST_ISA; what they ask for and cannot have is an error."""
    backends = ("numpy",) if native is None else ("native", "numpy")
    backend = os.environ.get("DROPFAST_BACKEND") or backends[0]
    if backend not in backends:
        raise ValueError(f"DROPFAST_BACKEND must be one of {', '.join(backends)} here, got {backend!r}")
    isas = native.isas() if backend == "native" else ()
    isa = os.environ.get("DROPFAST_ISA") or (isas[0] if isas else "")
    if isa and isa not in isas:
        allowed = f"one of {', '.join(isas)}" if isas else "unset for the numpy backend"
        raise ValueError(f"DROPFAST_ISA must be {allowed} here, got {isa!r}")
    use(f"native:{isa}" if isas else "numpy")


_use_environment()
