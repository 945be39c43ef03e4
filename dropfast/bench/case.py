"""What is timed: a case, the data for it, and how the answer to it is checked."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

Array: TypeAlias = npt.NDArray[Any]


@dataclass(frozen=True)
class Case:
    """One thing to do, the same for every contender.

    Attributes
    ----------
    shape : tuple of int
        Of the data: samples first, then units, or whatever a sample has.
    rate : float
        Probability that an element is dropped.
    dtype : {'float32', 'bfloat16'}
        Of the data and the result.
    shared : bool
        Whether all samples share one mask.
    backward : bool
        Whether the gradient is asked for as well.
    threads : int
        How many threads a contender may use.
    """

    shape: tuple[int, ...]
    rate: float
    dtype: str = "float32"
    shared: bool = False
    backward: bool = False
    threads: int = 1

    @property
    def mode(self) -> str:
        """What is asked for, in words."""
        return f"rate {self.rate}" + ", shared" * self.shared + ", backward" * self.backward

    @property
    def name(self) -> str:
        """The case in words: shape, dtype and mode."""
        return f"{'x'.join(map(str, self.shape))}, {self.dtype}, {self.mode}"

    @property
    def size(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    @property
    def noise_shape(self) -> tuple[int, ...]:
        """Shape of the mask."""
        return (1, *self.shape[1:]) if self.shared else self.shape

    @property
    def scale(self) -> float:
        """What kept elements are multiplied by."""
        return 1 / (1 - self.rate)

    @property
    def moved(self) -> int:
        """Bytes that must be read and written at the least: the data in and the result out, and the same backward."""
        return 2 * self.size * numpy_dtype(self.dtype).itemsize * (1 + self.backward)

    def x(self) -> Array:
        """Return the data: numbers in [1, 2), so that a 0 in the result is a dropped element. Not to be written to."""
        return _data(self.shape, self.dtype, 0)

    def dy(self) -> Array:
        """Return the gradient that comes in, with values like the data; without rows where none is asked for."""
        return _data(self.shape if self.backward else (0, *self.shape[1:]), self.dtype, 1)

    def arrays(self) -> tuple[Array, Array, Array, Array]:
        """Return x, dy, and an array for each result."""
        x, dy = self.x(), self.dy()
        return x, dy, empty(x.shape, x.dtype), empty(dy.shape, dy.dtype)

    def check(self, y: Array, x: Array | None = None) -> None:
        """Raise an AssertionError unless `y` is the data, or `x`, after dropout."""
        x = self.x() if x is None else x
        if y.shape != self.shape:
            raise AssertionError(f"{self.name}: the result has the shape {y.shape}")
        share = 1 - np.count_nonzero(y) / self.size
        # Six standard deviations of what is drawn; some peers draw 16-bit uniforms for 16-bit data, and miss the rate.
        tolerance = 6 * math.sqrt(self.rate * (1 - self.rate) / math.prod(self.noise_shape))
        tolerance += 0 if self.dtype == "float32" else 2**-7
        if not abs(share - self.rate) <= tolerance:
            raise AssertionError(
                f"{self.name}: {share:.4f} of the elements are 0, expected {self.rate} +- {tolerance:.4f}"
            )
        y, x = y[:CHECKED].astype(np.float32), x[:CHECKED].astype(np.float32)
        error = np.abs(y - x * np.float32(self.scale))[y != 0].max(initial=0)
        # 16 bits: the scale and the result may both have been rounded.
        if not error <= 2 * self.scale * (1e-6 if self.dtype == "float32" else 2**-7):
            raise AssertionError(f"{self.name}: a kept element is {error:.2g} away from x / (1 - rate)")
        if self.shared and (y.astype(bool) != y[0].astype(bool)).any():
            raise AssertionError(f"{self.name}: the mask is not the same for all samples")


CHECKED = 256  # rows whose values are looked at, so that checks of large arrays stay short


def numpy_dtype(name: str) -> np.dtype[Any]:
    """Return the dtype of a name, 'bfloat16' included."""
    if name == "bfloat16":
        import ml_dtypes

        dtype: np.dtype[Any] = np.dtype(ml_dtypes.bfloat16)
        return dtype
    return np.dtype(name)


PAGE = 4096
BEHIND = 16  # bytes behind a page at which arrays begin


def empty(shape: tuple[int, ...], dtype: np.dtype[Any] | type[Any]) -> Array:
    """Return an array 16 bytes behind the start of a page of memory; no page is new when time is taken.

    NumPy's own big arrays begin 16 or 32 bytes behind a multiple of 64, so that vectors straddle cache lines unless
    somebody sees to it. Where two arrays lie in their pages can cost NumPy a factor of six (loads that seem to follow
    stores to the same place), and chance should not decide that.
    """
    dtype = np.dtype(dtype)
    nbytes = math.prod(shape) * dtype.itemsize
    memory = np.ones(nbytes + PAGE + BEHIND, np.uint8)
    start = -memory.ctypes.data % PAGE + BEHIND
    return memory[start : start + nbytes].view(dtype).reshape(shape)


@lru_cache(maxsize=2)  # data and gradient: all contenders of a case read the same memory, as far as they can
def _data(shape: tuple[int, ...], dtype: str, seed: int) -> Array:
    values = np.random.default_rng(seed).random(shape, np.float32)
    values += 1
    x = empty(shape, numpy_dtype(dtype))
    x[...] = np.minimum(values, np.float32(1.99))
    return x
