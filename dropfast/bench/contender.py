"""What a contender is: somebody who can do a case."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from contextlib import suppress
from importlib import metadata
from typing import Any, TypeAlias

import numpy as np

from dropfast.bench.case import Array, Case

Run: TypeAlias = Callable[[], Any]


class Contender(ABC):
    """Somebody who can do a case.

    Attributes
    ----------
    name : str
        As reports show it.
    distributions : tuple of str
        The packages that have it: the version of the first one installed counts.
    peer : bool
        Whether this is other people's dropout, which ``--no-peers`` leaves out.
    """

    name: str
    distributions: tuple[str, ...]
    peer = True
    dtypes: tuple[str, ...] = ("float32", "bfloat16")
    backward = True

    @property
    def project(self) -> str:
        """Whose it is: the name without the way that it is run."""
        return self.name.partition(",")[0]

    def version(self) -> str | None:
        """Return the installed version, None if it is not installed."""
        for distribution in self.distributions:
            with suppress(metadata.PackageNotFoundError):
                return metadata.version(distribution)
        return None

    def takes(self, case: Case) -> bool:
        """Return whether it can do the case at all."""
        return case.dtype in self.dtypes and (self.backward or not case.backward)

    @abstractmethod
    def prepare(self, case: Case) -> Run:
        """Return a function that does the case once, and returns the result; backward, the pair (result, gradient)."""

    def to_numpy(self, result: Any) -> Array:
        """Return one of the results as a NumPy array."""
        return np.asarray(result)

    def check(self, case: Case, returned: Any) -> None:
        """Raise an AssertionError unless what a run returned is right."""
        if not case.backward:
            case.check(self.to_numpy(returned))
            return
        y, dx = map(self.to_numpy, returned)
        case.check(y)
        case.check(dx, case.dy())
        if ((y != 0) != (dx != 0)).any():
            raise AssertionError(f"{case.name}: forward and backward drop different elements")
