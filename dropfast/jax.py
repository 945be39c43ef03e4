"""Dropout for JAX: masks that are pure functions of a JAX key, under jit, grad, jvp, vmap, shard_map and export.

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

import contextlib
import functools
import math
import re
import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import Any, SupportsIndex

import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt

# Private, for there is no public way to say it: a primitive that is lowered with its devices known, as those of
# jax.experimental.custom_partitioning are.
from jax._src.dispatch import prim_requires_devices_during_lowering
from jax.experimental.custom_partitioning import custom_partitioning
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir
from jax.sharding import NamedSharding, PartitionSpec

from dropfast import _backend, _checks, _portable
from dropfast._mask import Mask

__all__ = ["apply", "dropout", "road"]


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
    of_rate, threshold = _threshold(rate)
    x, names = _array(x), _names(spec)
    flat, strides = _layout(x, names, shared_axes, noise_shape)
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
    x, names = _array(x), _names(spec)
    whole = _whole(x.shape, names)
    if whole != mask.shape:
        raise _checks.wrong_shape(mask.shape, whole)
    _, strides, start, key, draw, threshold = mask._recipe
    words = np.array([*_halves(key), draw, *_halves(threshold), *_halves(start)], np.uint32)
    return _apply(words, x, strides=strides, threshold=threshold, names=names, portable=bool(portable))


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


def _threshold(rate: Any) -> tuple[Any, int | None]:
    """Return the threshold as words, or a traced rate; and as a number, if it is to be static."""
    if not isinstance(rate, jax.Array):
        threshold = _checks.threshold(_checks.rate(rate))
        return np.array(_halves(threshold), np.uint32), threshold
    if not jnp.issubdtype(rate.dtype, jnp.floating) or rate.shape:
        raise TypeError(f"rate must be a number or a floating scalar, got {rate.dtype} of the shape {rate.shape}")
    if isinstance(rate, jax.core.Tracer):
        return rate, None
    return np.array(_halves(_checks.threshold(_checks.rate(float(rate)))), np.uint32), None


def _threshold_words(of_rate: Any) -> Any:
    """Return the threshold of a traced rate: it is rounded half to even, as stream v1 says."""
    if of_rate.shape:
        return of_rate
    wide = of_rate if of_rate.dtype == jnp.float64 else of_rate.astype(jnp.float32)
    threshold = jax.lax.round(wide * 2.0**32, jax.lax.RoundingMethod.TO_NEAREST_EVEN)
    is_all = ~(threshold < 2.0**32)  # of a NaN, too
    return jnp.stack([is_all, jnp.where(is_all, 0, jnp.maximum(threshold, 0))]).astype(jnp.uint32)


def _layout(x: Any, names: tuple[Any, ...], shared_axes: Any, noise_shape: Any) -> tuple[Any, tuple[int, ...]]:
    """Return x in a shape for which the strides of the index are known, and these."""
    if all(isinstance(n, int) for n in x.shape):
        return x, _checks.sharing(_whole(x.shape, names), shared_axes, noise_shape)[0]
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
# A mask reaches XLA as uint32 words: key, draw, threshold, start (the high word first), and then, for each axis, how
# many elements further along x begins. As operands they may be traced, mapped and sharded, and a new key compiles
# nothing anew. They have 32 bits because JAX by default has no more. The strides are static, as attributes; so is the
# threshold, once more, where the rate is: where there is no handler, the program is shorter if it is known.

_OFFSETS = 7  # where the words for the axes begin
_STATIC = ("strides", "threshold", "portable")


def _halves(number: int) -> tuple[int, int]:
    return number >> 32, number & 0xFFFFFFFF


@functools.partial(jax.jit, static_argnames=(*_STATIC, "names", "use"), inline=True)
def _dropout(key: Any, draw: Any, of_rate: Any, x: Any, *, use: bool, **static: Any) -> Any:
    if use and jnp.issubdtype(key.dtype, jax.dtypes.prng_key):
        jax.random.bits(key, (0,))  # no bits: it tells jax.debug_key_reuse
    words = jnp.concatenate([_key_words(key), _draw_word(draw), _threshold_words(of_rate), np.zeros(2, np.uint32)])
    return _apply(words, x, **static)


@functools.partial(jax.jit, static_argnames=(*_STATIC, "names"), inline=True)
def _apply(words: Any, x: Any, *, names: tuple[Any, ...], **static: Any) -> Any:
    words = jnp.concatenate([words, _first_of_shard(x.shape, names)])
    # In shard_map: with a key for each device, there is a result for each, even of an x that all have in common.
    only_words_vary = jax.typeof(words).manual_axis_type.varying - jax.typeof(x).manual_axis_type.varying
    x = jax.lax.pcast(x, tuple(only_words_vary), to="varying")
    return _dropout_p.bind(x, words, **static)


# ---- the primitive -------------------------------------------------------------------------------
#
# dropout_p takes x and words. All axes of words but the last count masks; x has the same, and behind them the axes of a
# mask. It is linear in x, and its own transpose. Where a program is for several devices it becomes a part for each,
# with the offset of its own among its words; local_p is such a part.

_dropout_p, _local_p = Primitive("dropfast"), Primitive("dropfast_local")
for _p in (_dropout_p, _local_p):
    _p.def_abstract_eval(lambda x, words, **static: x.update(weak_type=False))
_compiled = jax.jit(_dropout_p.bind, static_argnames=("strides", "threshold", "portable"))


@_dropout_p.def_impl
def _run(x: Any, words: Any, **static: Any) -> Any:
    with jax.disable_jit(False):  # there is no other way to run it
        return _compiled(x, words, **static)


def _transpose(dy: Any, x: Any, words: Any, **static: Any) -> tuple[Any, None]:
    return _dropout_p.bind(dy, words, **static), None


ad.defjvp(_dropout_p, lambda dx, x, words, **static: _dropout_p.bind(dx, words, **static), None)
ad.primitive_transposes[_dropout_p] = _transpose


def _map(
    operands: tuple[Any, Any], axes: tuple[int | None, int | None], *, strides: tuple[int, ...], **static: Any
) -> tuple[Any, int]:
    (x, words), (x_axis, words_axis) = operands, axes
    if words_axis is not None:  # masks of their own
        words = jnp.moveaxis(words, words_axis, 0)
        x = jnp.broadcast_to(x, (len(words), *x.shape)) if x_axis is None else jnp.moveaxis(x, x_axis, 0)
        return _dropout_p.bind(x, words, strides=strides, **static), 0
    assert x_axis is not None
    masks = words.ndim - 1
    if x_axis < masks:
        x, x_axis = jnp.moveaxis(x, x_axis, masks), masks
    axis = x_axis - masks  # in common: one more shared axis
    words = jnp.insert(words, _OFFSETS + axis, np.uint32(0), axis=-1)
    return _dropout_p.bind(x, words, strides=(*strides[:axis], 0, *strides[axis:]), **static), x_axis


batching.primitive_batchers[_dropout_p] = _map


# ---- devices -------------------------------------------------------------------------------------


def _lower(ctx: Any, x: Any, words: Any, **static: Any) -> Any:
    module, masks = ctx.module_context, ctx.avals_in[1].ndim - 1
    # An exported program is divided where it is loaded, and with no help of Python; in shard_map it is divided already.
    divided = not module.lowering_parameters.for_export and getattr(module.axis_context, "abstract_mesh", None)
    if divided and road() != "ffi":  # a callback would not outlive the partitioner, which lowers the parts
        static["portable"] = True
    run = _divided(masks, **static) if divided else functools.partial(_local_p.bind, **static)
    return mlir.lower_fun(run, multiple_results=False)(ctx, x, words)


mlir.register_lowering(_dropout_p, _lower)
prim_requires_devices_during_lowering.add(_dropout_p)


@functools.cache
def _divided(masks: int, *, strides: tuple[int, ...], **static: Any) -> Any:
    """Return the function that XLA's partitioner divides as it divides x, along any axes."""

    def run(x: Any, words: Any) -> Any:
        return _local_p.bind(x, words, strides=strides, **static)

    def part(mesh: Any, arguments: Any, result: Any) -> Any:
        names = arguments[0].sharding.spec

        def run_part(x: Any, words: Any) -> Any:
            return run(x, words.at[..., _OFFSETS:].add(_first_of_shard(x.shape[masks:], names[masks:])))

        of_words = NamedSharding(mesh, PartitionSpec(*names[:masks], None))
        return mesh, run_part, arguments[0].sharding, (arguments[0].sharding, of_words)

    axes = [f"i{axis}" for axis in range(masks + len(strides))]
    of_x, of_words = " ".join(axes), " ".join((*axes[:masks], "word"))
    divided = custom_partitioning(run)
    divided.def_partition(part, sharding_rule=f"{of_x}, {of_words} -> {of_x}", need_replication_factors=("word",))
    return divided


def _first_of_shard(shape: tuple[int, ...], names: tuple[Any, ...]) -> Any:
    """Return where a shard of this shape begins along each axis, if these mesh axes divide them."""
    offsets: list[Any] = [np.uint32(0)] * len(shape)
    for axis, name in enumerate(names):
        if name is not None:
            offsets[axis] = jax.lax.axis_index(name).astype(jnp.uint32) * np.uint32(shape[axis])
    return jnp.stack(offsets) if offsets else np.zeros(0, np.uint32)


def _lower_on_cpu(ctx: Any, x: Any, words: Any, *, strides: tuple[int, ...], **static: Any) -> Any:
    handler = road() == "ffi"
    if static["portable"] or (ctx.module_context.lowering_parameters.for_export and not handler):
        return _lower_portably(ctx, x, words, strides=strides, **static)
    if handler:
        return jax.ffi.ffi_lowering("dropfast")(ctx, x, words, strides=np.array(strides, np.int64))
    # Not jax.pure_callback: it puts the operands on a device first, and waits for ever if all threads are busy here.
    callback = functools.partial(_from_python, strides)
    results, _, _ = mlir.emit_python_callback(
        ctx, callback, None, [x, words], ctx.avals_in, ctx.avals_out, has_side_effect=False, returns_token=False
    )
    return results


def _from_python(
    strides: tuple[int, ...], x: npt.NDArray[Any], words: npt.NDArray[np.uint32]
) -> tuple[npt.NDArray[Any]]:
    """Do what csrc/jax_ffi.cpp does."""
    out = np.empty(x.shape, x.dtype)
    for i in np.ndindex(words.shape[:-1]):
        key_high, key_low, draw, t_high, t_low, start_high, start_low, *offsets = words[i].tolist()
        start = (start_high << 32 | start_low) + sum(a * b for a, b in zip(offsets, strides, strict=True))
        part = (*i, ...)  # an array also if x has no other axes
        recipe = (x[part].shape, strides, start, key_high << 32 | key_low, draw, t_high << 32 | t_low)
        _backend.apply(x[part], out[part], recipe)
    return (out,)


def _in_jax(x: Any, words: Any, *, strides: tuple[int, ...], threshold: int | None, portable: bool) -> Any:
    """Do it in operations that XLA knows."""
    xp, masks = _portable.JAX(jax, jax.typeof(words).manual_axis_type.varying), words.shape[:-1]
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


_lower_portably = mlir.lower_fun(_in_jax, multiple_results=False)
mlir.register_lowering(_local_p, _lower_portably)
mlir.register_lowering(_local_p, _lower_on_cpu, platform="cpu")


# ---- the handler ---------------------------------------------------------------------------------


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
    if not _suits(module.API_VERSION):
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


def _suits(version: tuple[int, int]) -> bool:
    """Return whether this jaxlib's headers say that it takes handlers of a version of XLA's interface."""
    try:
        header = Path(jax.ffi.include_dir(), "xla", "ffi", "api", "c_api.h").read_text(encoding="utf-8")
    except OSError:
        return False
    found = dict(re.findall(r"^#define XLA_FFI_API_(MAJOR|MINOR) (\d+)$", header, re.MULTILINE))
    return version[0] == int(found.get("MAJOR", -1)) and version[1] <= int(found.get("MINOR", -1))


# Programs that were exported, and are loaded here, find their handler. The tests, and what else may say that there is
# no handler, do so later: whether it can be had is asked whenever a program is lowered.
with contextlib.suppress(ImportError):
    import dropfast._jax_ffi as _module

    if _suits(_module.API_VERSION):
        _handler_is_registered()
