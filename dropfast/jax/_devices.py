"""From the primitive to programs: of one device or divided among several, by the kernels or by XLA's own operations."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt
from jax.experimental.custom_partitioning import custom_partitioning
from jax.interpreters import mlir
from jax.sharding import AbstractMesh, AxisType, Mesh

from dropfast import _backend
from dropfast.jax import _handler, _private
from dropfast.jax._portable import select
from dropfast.jax._primitive import OFFSETS, dropout_p, local_p

# ---- programs for several devices ----------------------------------------------------------------


def _lower(ctx: Any, x: Any, words: Any, **static: Any) -> Any:
    divided = _is_divided(ctx.module_context)
    if divided and _handler.road() != "ffi":  # a callback would not outlive the partitioner, which lowers the parts
        static["portable"] = True
    run = _divided if divided and ctx.avals_out[0].size else local_p.bind
    return mlir.lower_fun(functools.partial(run, **static), multiple_results=False)(ctx, x, words)


def _is_divided(module: Any) -> bool:
    """Return whether XLA's partitioner is to divide arrays, along all axes of a mesh or along some."""
    if module.lowering_parameters.for_export:  # where it is loaded, and with no help of Python
        return False
    axes = module.axis_context
    manual = getattr(axes, "manual_axes", None)
    if manual is None:
        return getattr(axes, "abstract_mesh", None) is not None and axes.num_devices > 1
    # In shard_map it is divided already, but for the axes that it leaves to XLA.
    left = set(axes.mesh.axis_names) - set(manual)
    return isinstance(axes.mesh, Mesh) and any(axes.mesh.shape[name] > 1 for name in left)


mlir.register_lowering(dropout_p, _lower)
_private.needs_devices.add(dropout_p)


def _divided(x: Any, words: Any, **static: Any) -> Any:
    """Let XLA's partitioner divide it as it divides x, along any axes.

    The words become arrays of the shape of x, of which each part has its own: in the words for the axes is where it
    begins. Of these arrays XLA computes what is used, which is their first elements.
    """
    masks, sharding = words.ndim - 1, jax.typeof(x).sharding
    if AxisType.Explicit in sharding.mesh.axis_types:
        x = jax.sharding.reshard(x, sharding)  # so it is already, but a shard_map does not tell XLA

    def run(x: Any, *words: Any) -> Any:  # of one device; XLA would not let it slice explicit axes
        first = [word.min(tuple(range(masks, x.ndim))) for word in words]
        return local_p.bind(x, jnp.stack(first, -1), **static)

    def run_part(x: Any, *words: Any) -> Any:  # pragma: no cover - XLA calls it from a thread that is not Python's
        # JAX may trace it where the mesh of the whole is around, of whose axes one device has none.
        with jax.sharding.use_abstract_mesh(AbstractMesh((), ())):
            first = [word[(..., *(0,) * (x.ndim - masks))] for word in words]
            return local_p.bind(x, jnp.stack(first, -1), **static)

    def part(mesh: Any, arguments: Any, result: Any) -> Any:  # pragma: no cover - as that
        of_x = arguments[0].sharding
        return mesh, run_part, of_x, (of_x,) * len(arguments)

    words = words.reshape(*words.shape[:-1], *(1,) * (x.ndim - masks), words.shape[-1])
    each = [jnp.broadcast_to(words[..., i], x.shape, out_sharding=sharding) for i in range(words.shape[-1])]
    for axis in range(masks, x.ndim):
        each[OFFSETS + axis - masks] += jax.lax.broadcasted_iota(np.uint32, x.shape, axis, out_sharding=sharding)
    axes = " ".join(f"i{axis}" for axis in range(x.ndim))
    rule = f"{', '.join([axes] * (1 + len(each)))} -> {axes}"
    divided = custom_partitioning(run)
    divided.def_partition(part, sharding_rule=rule, decode_shardings=False)
    return divided(x, *each)


# ---- programs for one ----------------------------------------------------------------------------


def _lower_on_cpu(ctx: Any, x: Any, words: Any, *, strides: tuple[int, ...], **static: Any) -> Any:
    handler = _handler.road() == "ffi"
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


_lower_portably = mlir.lower_fun(select, multiple_results=False)
mlir.register_lowering(local_p, _lower_portably)
mlir.register_lowering(local_p, _lower_on_cpu, platform="cpu")
