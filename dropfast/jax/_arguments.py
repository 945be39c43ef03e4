"""What is legal here: arguments that may be traced, and whose lengths an exported program may not know."""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec

from dropfast import _checks, _doors
from dropfast.jax._primitive import halves


def array(x: Any) -> Any:
    if not isinstance(x, (jax.Array, np.ndarray)):
        raise TypeError(f"x must be a jax.Array or a numpy.ndarray, got {type(x).__name__}{_doors.hint(x)}")
    if isinstance(x, np.ndarray) and not _checks.is_plain(x):
        raise _checks.not_an_array("x", x)
    if not _checks.takes(x.dtype):
        raise _checks.wrong_dtype(x.dtype)
    if jax.dtypes.canonicalize_dtype(x.dtype) != x.dtype:
        raise TypeError(f"x must have a dtype that JAX keeps, got {x.dtype}, which needs jax_enable_x64")
    return x


def key_words(key: Any) -> Any:
    """Return the two words of a key."""
    words = jax.random.key_data(key) if jnp.issubdtype(key.dtype, jax.dtypes.prng_key) else key
    if words.dtype != jnp.uint32:
        raise TypeError(f"key must be a JAX key or its uint32 words, got {words.dtype}")
    if words.shape not in ((2,), (4,)):
        raise ValueError(f"key must be one key, of 2 or 4 words, got words of the shape {words.shape}")
    return words[:2]


def draw_word(draw: Any) -> Any:
    if not jnp.issubdtype(draw.dtype, jnp.integer) or draw.shape:
        raise TypeError(f"draw must be an integer, got {draw.dtype} of the shape {draw.shape}")
    return draw.astype(jnp.uint32)[None]


def threshold(rate: Any) -> tuple[Any, int | None]:
    """Return the threshold as words, or a traced rate; and as a number, if it is to be static."""
    if not isinstance(rate, jax.Array):
        threshold = _checks.threshold(_checks.rate(rate))
        return np.array(halves(threshold), np.uint32), threshold
    if not jnp.issubdtype(rate.dtype, jnp.floating) or rate.shape:
        raise TypeError(f"rate must be a number or a floating scalar, got {rate.dtype} of the shape {rate.shape}")
    if isinstance(rate, jax.core.Tracer):
        return rate, None
    return np.array(halves(_checks.threshold(_checks.rate(float(rate)))), np.uint32), None


def threshold_words(of_rate: Any) -> Any:
    """Return the threshold of a traced rate: it is rounded half to even, as stream v1 says."""
    if of_rate.shape:
        return of_rate
    wide = of_rate if of_rate.dtype == jnp.float64 else of_rate.astype(jnp.float32)
    threshold = jax.lax.round(wide * 2.0**32, jax.lax.RoundingMethod.TO_NEAREST_EVEN)
    is_all = ~(threshold < 2.0**32)  # of a NaN, too
    return jnp.stack([is_all, jnp.where(is_all, 0, jnp.maximum(threshold, 0))]).astype(jnp.uint32)


def layout(x: Any, names: tuple[Any, ...], shared_axes: Any, noise_shape: Any) -> tuple[Any, tuple[int, ...]]:
    """Return x in a shape for which the strides of the index are known, and these."""
    if all(isinstance(n, int) for n in x.shape):
        return x, _checks.sharing(whole(x.shape, names), shared_axes, noise_shape)[0]
    # A program that is exported for any length of some axes. A mask that shares nothing is one row, whatever its axes.
    shape = tuple(n if isinstance(n, int) else 2 for n in x.shape)
    lengths = noise_shape and [None if n is not None and not isinstance(n, int) else n for n in noise_shape]
    strides, shared = _checks.sharing(shape, shared_axes, lengths)
    if not shared:
        return x.reshape(math.prod(x.shape)), (1,)
    outermost = min(set(range(x.ndim)) - set(shared), default=0)
    if not all(isinstance(n, int) or axis in shared or axis == outermost for axis, n in enumerate(x.shape)):
        raise ValueError(f"x may have an unknown length only on its first axis that is not shared, got {x.shape}")
    return x, strides


def names_of(spec: Any) -> tuple[Any, ...]:
    """Return the names of the mesh axes that divide each axis of x; axes that are left out are whole."""
    if spec is not None and not isinstance(spec, PartitionSpec):
        raise TypeError(f"spec must be a jax.sharding.PartitionSpec, got {type(spec).__name__}")
    return tuple(spec or ())


def whole(shape: tuple[int, ...], names: tuple[Any, ...]) -> tuple[int, ...]:
    """Return the shape of the array that x is a shard of."""
    if len(names) > len(shape):
        raise ValueError(f"spec must have at most one entry for each of the {len(shape)} axes of x, got {names}")
    lengths = list(shape)
    for axis, name in enumerate(names):
        if name is not None:
            lengths[axis] *= jax.lax.axis_size(name)
            if lengths[axis] > 1 << 32:
                raise ValueError(f"spec may divide axes of at most 2**32 elements, got {lengths[axis]}")
    return tuple(lengths)
