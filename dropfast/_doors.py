"""The doors: the framework behind each, the version that it needs, and who is sent to which."""

from __future__ import annotations

import importlib
import re
from typing import Any

#: door: (the framework, the oldest version that the door opens to). The extras of pyproject.toml ask for the same.
FRAMEWORKS = {
    "dask": ("Dask", "2025.5"),
    "jax": ("JAX", "0.9.1"),
    "keras": ("Keras", "3.15.1"),
    "tensorflow": ("TensorFlow", "2.21"),
    "torch": ("PyTorch", "2.13"),
}


def need(door: str) -> None:
    """Raise unless the framework of a door is there, and new enough: what a door does first of all."""
    error = fault(door)
    if error:
        raise error


def fault(door: str) -> ImportError | None:
    """Import the framework of a door, and return what is wrong, None if nothing is. One that is broken raises."""
    framework, oldest = FRAMEWORKS[door]
    needs = f"dropfast.{door} needs {framework} {oldest} or newer"
    remedy = f'pip install "dropfast[{door}]", or ".[{door}]" in a checkout'
    try:
        version = getattr(importlib.import_module(door), "__version__", "something else of that name")
    except ModuleNotFoundError as error:
        if error.name != door:
            raise
        return ModuleNotFoundError(f"{needs}, which is not installed: {remedy}", name=door)
    if release(version) < release(oldest):
        return ImportError(f"{needs}, got {version}: {remedy}", name=door)
    return None


def release(version: str) -> tuple[int, ...]:
    """Return the numbers that a version begins with."""
    found = re.match(r"\d+(\.\d+)*", version)
    return tuple(map(int, found[0].split("."))) if found else ()


def hint(value: Any) -> str:
    """Return the end of a message about an array that has a door of its own; nothing for anything else."""
    if hasattr(value, "shape") and hasattr(value, "dtype"):
        for kind in type(value).__mro__:
            door = str(kind.__module__).partition(".")[0].removesuffix("lib")  # JAX's arrays are jaxlib's
            if door in FRAMEWORKS:
                return f"; for {FRAMEWORKS[door][0]} there is dropfast.{door}"
    return ""
