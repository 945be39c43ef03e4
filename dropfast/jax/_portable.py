"""The portable text in JAX: its arrays, and a mask's words to its bits by operations that XLA knows."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from dropfast import _checks, _portable
from dropfast._portable import Array, Body
from dropfast.jax._primitive import varying


class Arrays(_portable.Looped):
    """JAX's, which has no integers of 64 bits by default."""

    wide = False

    def __init__(self, varying: frozenset[Any]) -> None:
        self.varying = varying  # the axes of a mesh along which the words are not the same, inside of jax.shard_map

    def word(self, number: int) -> Any:
        return np.uint32(number)

    def words(self, numbers: list[int]) -> Array:
        return jnp.array(numbers, jnp.uint32)

    def arange(self, n: Any) -> Array:
        return jax.lax.iota(jnp.uint32, n)

    def right(self, words: Array, by: Any) -> Array:
        return words >> by

    def left(self, words: Array, by: Any) -> Array:
        return words << by

    def where(self, condition: Array, a: Array, b: Any) -> Array:
        return jnp.where(condition, a, b)

    def cast(self, array: Array, dtype: Any) -> Array:
        return array.astype({"word": jnp.uint32, "uint8": jnp.uint8}.get(dtype, dtype))

    def widened(self, x: Array) -> Array:
        return x.astype(jnp.float32) if x.dtype.itemsize == 2 else x

    def stack(self, arrays: list[Array]) -> Array:
        return jnp.stack(arrays, axis=-1)

    def concatenate(self, arrays: list[Array]) -> Array:
        return jnp.concatenate(arrays, axis=-1)

    def reshape(self, array: Array, shape: tuple[Any, ...]) -> Array:
        return jnp.reshape(array, shape)

    def broadcast(self, array: Array, shape: tuple[Any, ...]) -> Array:
        array = jnp.broadcast_to(array, shape)
        return jax.lax.pcast(array, tuple(self.varying - varying(array)), to="varying")

    def loop(self, n: int, body: Body, of: tuple[Array, ...]) -> Any:
        return jax.lax.fori_loop(np.uint32(0), np.uint32(n), body, of)


def select(x: Any, words: Any, *, strides: tuple[int, ...], threshold: int | None, portable: bool) -> Any:
    """Do what csrc/jax_ffi.cpp does."""
    xp, masks = Arrays(varying(words)), words.shape[:-1]
    shape = x.shape[len(masks) :]
    key_high, key_low, draw, t_high, t_low, start_high, start_low, *offsets = words.reshape(-1, words.shape[-1]).T
    start = start_high, start_low
    for offset, stride in zip(offsets, strides, strict=True):
        if stride:
            start = _portable.advanced(xp, start, offset, stride)
    of = (t_high, t_low) if threshold is None else threshold
    kept = _portable.keep(xp, shape, strides, start, (key_high, key_low), draw, of)
    scale: Any = _scale(t_high, t_low, x.dtype) if threshold is None else _checks.scale(threshold)
    if threshold is None:
        scale = scale.reshape(-1, *(1,) * len(shape))
    return _portable.select(xp, x.reshape(draw.shape + shape), kept, scale).reshape(x.shape)


def _scale(t_high: Any, t_low: Any, dtype: Any) -> Any:
    """Return the scale of thresholds: divided in float64, which JAX has only if it is asked, and rounded once more."""
    with jax.enable_x64(True):
        kept = 2.0**32 - (t_high.astype(jnp.float64) * 2.0**32 + t_low.astype(jnp.float64))
        scale = jnp.where(kept > 0, 2.0**32 / kept, 0.0)
        return scale if dtype == jnp.float64 else scale.astype(jnp.float32)
