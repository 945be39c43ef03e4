"""Tests that need processes of their own: what became of them there."""

import traceback
from typing import Any


def names_of(module: dict[str, Any]) -> list[str]:
    return [name for name in module if name.startswith("test_")]


def outcomes(module: dict[str, Any]) -> dict[str, str | None]:
    """Run each test of a module, and return what went wrong, None where nothing did."""
    found: dict[str, str | None] = {}
    for name in names_of(module):
        try:
            module[name]()
            found[name] = None
        except Exception:
            found[name] = traceback.format_exc()
    return found
