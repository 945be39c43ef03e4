"""The private names of JAX that this door needs: all of them, each with its reason, and nowhere else.

A test says which one is gone; without the test, the import does.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

import jax

#: What each is needed for.
REASONS = {
    "_src.dispatch.prim_requires_devices_during_lowering": "to lower a primitive with its devices known, as those of "
    "jax.experimental.custom_partitioning are",
}


def find(name: str) -> Any:
    """Return what a name below `jax` stands for, or say what is gone and what it was for."""
    module, _, last = name.rpartition(".")
    try:
        return getattr(import_module(f"jax.{module}"), last)
    except (ImportError, AttributeError):
        raise ImportError(f"JAX {jax.__version__} lacks jax.{name}, needed {REASONS[name]}") from None


needs_devices = find("_src.dispatch.prim_requires_devices_during_lowering")
