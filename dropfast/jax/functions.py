"""What a user calls, but for `road`."""

from __future__ import annotations

import functools
from collections.abc import Iterable
from typing import Any, SupportsIndex

import jax
import jax.numpy as jnp
import numpy as np

import dropfast.jax._devices  # noqa: F401  # what becomes of the primitive
from dropfast import _checks
from dropfast._mask import Mask
from dropfast.jax import _arguments
from dropfast.jax._primitive import STATIC, dropout_p, first_of_shard, halves, varying


def dropout(
    key: Any,
    x: Any,
    rate: Any,
    *,
    shared_axes: SupportsIndex | Iterable[SupportsIndex] = (),
    noise_shape: Iterable[SupportsIndex | None] | None = None,
    draw: Any = 0,
    spec: Any = None,
    portable: bool = False,
) -> Any:
    """Drop elements of `x` at random, and scale the kept ones so that the mean stays.

    Parameters
    ----------
    key : jax.Array
        A JAX key, or its uint32 words. ``jax.random.key(123)`` gives the bits of ``dropfast.Mask(..., key=123)``.
    x : jax.Array
        float16, bfloat16, float32 or float64, of any shape. A numpy.ndarray (or memmap, but no other subclass) of a
        dtype that JAX keeps is taken too.
    rate : float or floating scalar array
        Probability that an element is dropped, in [0, 1], with a resolution of 2**-32. A number is static; an array is
        data, so that a new rate compiles nothing. A traced one cannot be checked: what is below 0 counts as 0, and
        what is not below 1, a NaN too, as 1. Without jax_enable_x64 it is a float32: 0.1 is then another rate.
    shared_axes : int or tuple of ints, default ()
        Axes along which all elements share their fate. ``0`` drops the same units for the whole batch. Static.
    noise_shape : tuple of int or None, optional
        The same in TensorFlow's words: the shape of the mask, with 1 on shared axes and the full length, or None, on
        others. Give this or `shared_axes`. Static.
    draw : int or integer scalar array, default 0
        Which mask of the key, in [0, 2**32): a step counter, for instance. A traced one cannot be checked, and counts
        modulo 2**32.
    spec : jax.sharding.PartitionSpec, optional
        Inside `jax.shard_map`, how the whole array is divided, if `x` is a shard of one: what `in_specs` says of `x`.
        The shards then get the bits of the whole. Static.
    portable : bool, default False
        Whether to use operations that XLA knows on CPUs too, where a handler of dropfast's is faster: for programs
        that are exported to where dropfast is not installed. Other devices always do. Static.

    Returns
    -------
    jax.Array
        ``x * scale`` where kept, +0.0 where dropped, with ``scale = 1 / (1 - rate)`` in effect.

    Raises
    ------
    TypeError, ValueError
        For an argument of the wrong kind or out of range. The message names it, what came and what is allowed.

    See Also
    --------
    apply : the same for a `dropfast.Mask`.

    Notes
    -----
    A pure function: the same arguments give the same bits, with jit and without, for every thread count, instruction
    set and sharding (stream v1, docs/stream.md). Under `jax.vmap`, a key that is not mapped gives all the same mask.
    `key` and `draw` are data, so that new ones compile nothing anew. The derivative applies the same mask again, and
    keeps nothing of the size of `x` for it.

    A key's words (w0, w1) are the 64 bits ``w0 << 32 | w1``. Of four words (rbg and unsafe_rbg) the first two count:
    whatever the seed, `jax.random.split` and `jax.random.fold_in` do, the others only repeat them in rbg.

    Examples
    --------
    >>> import jax
    >>> import jax.numpy as jnp
    >>> from dropfast.jax import dropout
    >>> dropout(jax.random.key(7), jnp.ones((2, 8)), 0.5)
    Array([[2., 0., 2., 2., 0., 2., 0., 0.],
           [0., 2., 0., 2., 2., 2., 2., 0.]], dtype=float32)
    >>> dropout(jax.random.key(7), jnp.ones((2, 8)), 0.5, shared_axes=0)
    Array([[2., 0., 2., 2., 0., 2., 0., 0.],
           [2., 0., 2., 2., 0., 2., 0., 0.]], dtype=float32)
    """
    of_rate, threshold = _arguments.threshold(rate)
    x, names = _arguments.array(x), _arguments.names_of(spec)
    flat, strides = _arguments.layout(x, names, shared_axes, noise_shape)
    if not isinstance(key, (jax.Array, np.ndarray)):
        raise TypeError(f"key must be a JAX key or its uint32 words, got {type(key).__name__}")
    # A key with a draw is as a key that this is folded in, which is not to use it.
    use = jax.config.jax_debug_key_reuse and isinstance(draw, int) and draw == 0
    if not isinstance(draw, jax.core.Tracer):
        draw = np.uint32(_checks.unsigned("draw", draw, 32))
    static = {"strides": strides, "threshold": threshold, "names": names, "portable": bool(portable)}
    y = _dropout(key, draw, of_rate, flat, use=use, **static)
    return y if flat is x else y.reshape(x.shape)


def apply(mask: Mask, x: Any, *, spec: Any = None, portable: bool = False) -> Any:
    """Return `x` with a mask applied, in a form that JAX can differentiate and transform.

    Parameters
    ----------
    mask : dropfast.Mask
        Any mask, a window of one too.
    x : jax.Array
        Of the mask's shape; float16, bfloat16, float32 or float64.
    spec : jax.sharding.PartitionSpec, optional
        Inside `jax.shard_map`, how the array that the mask is for is divided, if `x` is a shard of it: what `in_specs`
        says of `x`.
    portable : bool, default False
        As in `dropout`.

    Returns
    -------
    jax.Array
        Bit for bit what ``mask.apply`` gives for the same elements in a numpy.ndarray.

    Raises
    ------
    TypeError, ValueError
        If `x` is of another shape, or has a dtype that is not allowed.

    Examples
    --------
    >>> import dropfast
    >>> import jax
    >>> import jax.numpy as jnp
    >>> from dropfast.jax import apply
    >>> mask = dropfast.Mask((2, 8), 0.5, key=7)
    >>> jax.grad(lambda x: apply(mask, x).sum())(jnp.ones((2, 8)))
    Array([[2., 0., 2., 2., 0., 2., 0., 0.],
           [0., 2., 0., 2., 2., 2., 2., 0.]], dtype=float32)
    """
    if not isinstance(mask, Mask):
        raise _checks.not_a_mask(mask)
    x, names = _arguments.array(x), _arguments.names_of(spec)
    whole = _arguments.whole(x.shape, names)
    if whole != mask.shape:
        raise _checks.wrong_shape(mask.shape, whole)
    _, strides, start, key, draw, threshold = mask._recipe
    words = np.array([*halves(key), draw, *halves(threshold), *halves(start)], np.uint32)
    return _apply(words, x, strides=strides, threshold=threshold, names=names, portable=bool(portable))


# ---- from arguments to words ---------------------------------------------------------------------


@functools.partial(jax.jit, static_argnames=(*STATIC, "names", "use"), inline=True)
def _dropout(key: Any, draw: Any, of_rate: Any, x: Any, *, use: bool, **static: Any) -> Any:
    if use and jnp.issubdtype(key.dtype, jax.dtypes.prng_key):
        jax.random.bits(key, (0,))  # no bits: it tells jax.debug_key_reuse
    of_threshold, start = _arguments.threshold_words(of_rate), np.zeros(2, np.uint32)
    words = jnp.concatenate([_arguments.key_words(key), _arguments.draw_word(draw), of_threshold, start])
    return _apply(words, x, **static)


@functools.partial(jax.jit, static_argnames=(*STATIC, "names"), inline=True)
def _apply(words: Any, x: Any, *, names: tuple[Any, ...], **static: Any) -> Any:
    words = jnp.concatenate([words, first_of_shard(x.shape, names)])
    # In shard_map: with a key for each device, there is a result for each, even of an x that all have in common.
    x = jax.lax.pcast(x, tuple(varying(words) - varying(x)), to="varying")
    return dropout_p.bind(x, words, **static)
