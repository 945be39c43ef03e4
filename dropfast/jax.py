"""Dropout for JAX, on CPUs: masks that are pure functions of a JAX key, under jit, grad, jvp, vmap and shard_map.

>>> import jax
>>> import jax.numpy as jnp
>>> from dropfast.jax import dropout
>>> x = jnp.ones((2, 8))
>>> y = dropout(jax.random.key(7), x, 0.5)  # each sample its own mask
>>> y = dropout(jax.random.key(7), x, 0.5, shared_axes=0)  # one mask for the whole batch
"""

from __future__ import annotations

from dropfast import _doors

_doors.need("jax")

import functools
import warnings
from collections.abc import Iterable
from typing import Any, SupportsIndex

import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir
from jax.sharding import PartitionSpec

from dropfast import _backend, _checks
from dropfast._checks import RateLike
from dropfast._mask import Mask

__all__ = ["apply", "dropout", "road"]


def dropout(
    key: Any,
    x: Any,
    rate: RateLike,
    *,
    shared_axes: SupportsIndex | Iterable[SupportsIndex] = (),
    noise_shape: Iterable[SupportsIndex | None] | None = None,
    draw: Any = 0,
    spec: Any = None,
) -> Any:
    """Drop elements of `x` at random, and scale the kept ones so that the mean stays.

    Parameters
    ----------
    key : jax.Array
        A JAX key, or its uint32 words. ``jax.random.key(123)`` gives the bits of ``dropfast.Mask(..., key=123)``.
    x : jax.Array
        float16, bfloat16, float32 or float64, of any shape. A numpy.ndarray (or memmap, but no other subclass) of a
        dtype that JAX keeps is taken too.
    rate : float
        Probability that an element is dropped, in [0, 1], with a resolution of 2**-32. Static.
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
    threshold = _checks.threshold(_checks.rate(rate))
    x, names = _array(x), _names(spec)
    strides, _ = _checks.sharing(_whole(x.shape, names), shared_axes, noise_shape)
    if not isinstance(draw, jax.core.Tracer):
        draw = np.uint32(_checks.unsigned("draw", draw, 32))
    return _dropout(key, draw, x, strides=strides, threshold=threshold, names=names)


def apply(mask: Mask, x: Any, *, spec: Any = None) -> Any:
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
    x, names = _array(x), _names(spec)
    whole = _whole(x.shape, names)
    if whole != mask.shape:
        raise _checks.wrong_shape(mask.shape, whole)
    _, strides, start, key, draw, threshold = mask._recipe
    words = np.array([*_halves(key), draw, *_halves(start)], np.uint32)
    return _apply(words, x, strides=strides, threshold=threshold, names=names)


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
    return "ffi" if _backend.active is _backend.native and _handler_is_registered() else "callback"


# ---- arguments -----------------------------------------------------------------------------------


def _array(x: Any) -> Any:
    if not isinstance(x, (jax.Array, np.ndarray)):
        raise TypeError(f"x must be a jax.Array or a numpy.ndarray, got {type(x).__name__}{_doors.hint(x)}")
    if isinstance(x, np.ndarray) and not _checks.is_plain(x):
        raise _checks.not_an_array("x", x)
    if not _checks.takes(x.dtype):
        raise _checks.wrong_dtype(x.dtype)
    if jax.dtypes.canonicalize_dtype(x.dtype) != x.dtype:
        raise TypeError(f"x must have a dtype that JAX keeps, got {x.dtype}, which needs jax_enable_x64")
    return x


def _key_words(key: Any) -> Any:
    """Return the two words of a key."""
    words = jax.random.key_data(key) if jnp.issubdtype(key.dtype, jax.dtypes.prng_key) else key
    if words.dtype != jnp.uint32:
        raise TypeError(f"key must be a JAX key or its uint32 words, got {words.dtype}")
    if words.shape not in ((2,), (4,)):
        raise ValueError(f"key must be one key, of 2 or 4 words, got words of the shape {words.shape}")
    return words[:2]


def _draw_word(draw: Any) -> Any:
    if not jnp.issubdtype(draw.dtype, jnp.integer) or draw.shape:
        raise TypeError(f"draw must be an integer, got {draw.dtype} of the shape {draw.shape}")
    return draw.astype(jnp.uint32)[None]


def _names(spec: Any) -> tuple[Any, ...]:
    """Return the names of the mesh axes that divide each axis of x; axes that are left out are whole."""
    if spec is not None and not isinstance(spec, PartitionSpec):
        raise TypeError(f"spec must be a jax.sharding.PartitionSpec, got {type(spec).__name__}")
    return tuple(spec or ())


def _whole(shape: tuple[int, ...], names: tuple[Any, ...]) -> tuple[int, ...]:
    """Return the shape of the array that x is a shard of."""
    if len(names) > len(shape):
        raise ValueError(f"spec must have at most one entry for each of the {len(shape)} axes of x, got {names}")
    whole = list(shape)
    for axis, name in enumerate(names):
        if name is not None:
            whole[axis] *= jax.lax.axis_size(name)
            if whole[axis] > 1 << 32:
                raise ValueError(f"spec may divide axes of at most 2**32 elements, got {whole[axis]}")
    return tuple(whole)


# ---- a mask as data ------------------------------------------------------------------------------
#
# A mask reaches XLA as uint32 words: key, draw, start (the high word first), and then, for each axis, how many
# elements further along x begins. As operands they may be traced, mapped and sharded, and a new key compiles nothing
# anew. They have 32 bits because JAX by default has no more. The strides and the threshold are static, as attributes.

_OFFSETS = 5  # where the words for the axes begin


def _halves(number: int) -> tuple[int, int]:
    return number >> 32, number & 0xFFFFFFFF


@functools.partial(jax.jit, static_argnames=("strides", "threshold", "names"), inline=True)
def _dropout(key: Any, draw: Any, x: Any, *, strides: tuple[int, ...], threshold: int, names: tuple[Any, ...]) -> Any:
    words = jnp.concatenate([_key_words(key), _draw_word(draw), np.zeros(2, np.uint32)])
    return _apply(words, x, strides=strides, threshold=threshold, names=names)


@functools.partial(jax.jit, static_argnames=("strides", "threshold", "names"), inline=True)
def _apply(words: Any, x: Any, *, strides: tuple[int, ...], threshold: int, names: tuple[Any, ...]) -> Any:
    offsets: list[Any] = [np.uint32(0)] * x.ndim
    for axis, name in enumerate(names):
        if name is not None:
            offsets[axis] = jax.lax.axis_index(name).astype(jnp.uint32) * np.uint32(x.shape[axis])
    if offsets:
        words = jnp.concatenate([words, jnp.stack(offsets)])
    # In shard_map: with a key for each device, there is a result for each, even of an x that all have in common.
    only_words_vary = jax.typeof(words).manual_axis_type.varying - jax.typeof(x).manual_axis_type.varying
    x = jax.lax.pcast(x, tuple(only_words_vary), to="varying")
    return _dropout_p.bind(x, words, strides=strides, threshold=threshold)


# ---- the primitive -------------------------------------------------------------------------------
#
# dropout_p takes x and words. All axes of words but the last count masks; x has the same, and behind them the axes of a
# mask. It is linear in x, and its own transpose.

_dropout_p = Primitive("dropfast")
_dropout_p.def_abstract_eval(lambda x, words, **static: x.update(weak_type=False))
_compiled = jax.jit(_dropout_p.bind, static_argnames=("strides", "threshold"))


@_dropout_p.def_impl
def _run(x: Any, words: Any, **static: Any) -> Any:
    with jax.disable_jit(False):  # there is no other way to run it
        return _compiled(x, words, **static)


def _transpose(dy: Any, x: Any, words: Any, **static: Any) -> tuple[Any, None]:
    return _dropout_p.bind(dy, words, **static), None


ad.defjvp(_dropout_p, lambda dx, x, words, **static: _dropout_p.bind(dx, words, **static), None)
ad.primitive_transposes[_dropout_p] = _transpose


def _map(
    operands: tuple[Any, Any], axes: tuple[int | None, int | None], *, strides: tuple[int, ...], threshold: int
) -> tuple[Any, int]:
    (x, words), (x_axis, words_axis) = operands, axes
    if words_axis is not None:  # masks of their own
        words = jnp.moveaxis(words, words_axis, 0)
        x = jnp.broadcast_to(x, (len(words), *x.shape)) if x_axis is None else jnp.moveaxis(x, x_axis, 0)
        return _dropout_p.bind(x, words, strides=strides, threshold=threshold), 0
    assert x_axis is not None
    masks = words.ndim - 1
    if x_axis < masks:
        x, x_axis = jnp.moveaxis(x, x_axis, masks), masks
    axis = x_axis - masks  # in common: one more shared axis
    words = jnp.insert(words, _OFFSETS + axis, np.uint32(0), axis=-1)
    return _dropout_p.bind(x, words, strides=(*strides[:axis], 0, *strides[axis:]), threshold=threshold), x_axis


batching.primitive_batchers[_dropout_p] = _map


def _lower(ctx: Any, x: Any, words: Any, *, strides: tuple[int, ...], threshold: int) -> Any:
    platforms = tuple(ctx.module_context.platforms)
    if platforms != ("cpu",):
        raise ValueError(f"dropfast runs on the CPU only, got a computation for {', '.join(platforms)}")
    if road() == "ffi":
        call = jax.ffi.ffi_lowering("dropfast")
        return call(ctx, x, words, strides=np.array(strides, np.int64), threshold=np.int64(threshold))
    # Not jax.pure_callback: it puts the operands on a device first, and waits for ever if all threads are busy here.
    callback = functools.partial(_from_python, strides, threshold)
    results, _, _ = mlir.emit_python_callback(
        ctx, callback, None, [x, words], ctx.avals_in, ctx.avals_out, has_side_effect=False, returns_token=False
    )
    return results


mlir.register_lowering(_dropout_p, _lower)


def _from_python(
    strides: tuple[int, ...], threshold: int, x: npt.NDArray[Any], words: npt.NDArray[np.uint32]
) -> tuple[npt.NDArray[Any]]:
    """Do what csrc/jax_ffi.cpp does."""
    out = np.empty(x.shape, x.dtype)
    for i in np.ndindex(words.shape[:-1]):
        key_high, key_low, draw, start_high, start_low, *offsets = words[i].tolist()
        start = (start_high << 32 | start_low) + sum(a * b for a, b in zip(offsets, strides, strict=True))
        part = (*i, ...)  # an array also if x has no other axes
        recipe = (x[part].shape, strides, start, key_high << 32 | key_low, draw, threshold)
        _backend.apply(x[part], out[part], recipe)
    return (out,)


@functools.cache
def _handler_is_registered() -> bool:
    """Register the handler with XLA, once. A handler that is broken is an error, one that is refused a warning."""
    try:
        import dropfast._jax_ffi as module
    except ModuleNotFoundError as error:
        if error.name != "dropfast._jax_ffi":
            raise
        return False
    # Handlers that are registered before JAX has a backend are looked at when it gets one: a handler that was built for
    # another version of XLA's interface would then be the end of the backend, and not just of itself.
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
