"""A mask as data, and what JAX differentiates, maps and compiles."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import Primitive
from jax.interpreters import ad, batching

# A mask reaches XLA as uint32 words: key, draw, threshold, start (the high word first), and then, for each axis, how
# many elements further along x begins. As operands they may be traced, mapped and sharded, and a new key compiles
# nothing anew. They have 32 bits because JAX by default has no more. The strides are static, as attributes; so is the
# threshold, once more, where the rate is: where there is no handler, the program is shorter if it is known.

OFFSETS = 7  # where the words for the axes begin
STATIC = ("strides", "threshold", "portable")


def halves(number: int) -> tuple[int, int]:
    """Return the high and the low 32 bits."""
    return number >> 32, number & 0xFFFFFFFF


def first_of_shard(shape: tuple[int, ...], names: tuple[Any, ...]) -> Any:
    """Return where a shard of this shape begins along each axis, if these mesh axes divide them."""
    offsets: list[Any] = [np.uint32(0)] * len(shape)
    for axis, name in enumerate(names):
        if name is not None:
            offsets[axis] = jax.lax.axis_index(name).astype(jnp.uint32) * np.uint32(shape[axis])
    return jnp.stack(offsets) if offsets else np.zeros(0, np.uint32)


def varying(x: Any) -> frozenset[Any]:
    """Return the axes of a mesh along which an array is not the same, inside of `jax.shard_map`."""
    kind = jax.typeof(x)
    return kind.manual_axis_type.varying if hasattr(kind, "manual_axis_type") else kind.vma  # its name before JAX 0.10


# ---- the primitive -------------------------------------------------------------------------------
#
# dropout_p takes x and words. All axes of words but the last count masks; x has the same, and behind them the axes of a
# mask. It is linear in x, and its own transpose. Where a program is for several devices it becomes a part for each,
# with the offset of its own among its words; local_p is such a part.

dropout_p, local_p = Primitive("dropfast"), Primitive("dropfast_local")
for _p in (dropout_p, local_p):
    _p.def_abstract_eval(lambda x, words, **static: x.update(weak_type=False))
_compiled = jax.jit(dropout_p.bind, static_argnames=STATIC)


@dropout_p.def_impl
def _run(x: Any, words: Any, **static: Any) -> Any:
    with jax.disable_jit(False):  # there is no other way to run it
        return _compiled(x, words, **static)


def _transpose(dy: Any, x: Any, words: Any, **static: Any) -> tuple[Any, None]:
    return dropout_p.bind(dy, words, **static), None


ad.defjvp(dropout_p, lambda dx, x, words, **static: dropout_p.bind(dx, words, **static), None)
ad.primitive_transposes[dropout_p] = _transpose


def _map(
    operands: tuple[Any, Any], axes: tuple[int | None, int | None], *, strides: tuple[int, ...], **static: Any
) -> tuple[Any, int]:
    (x, words), (x_axis, words_axis) = operands, axes
    if words_axis is not None:  # masks of their own
        words = jnp.moveaxis(words, words_axis, 0)
        x = jnp.broadcast_to(x, (len(words), *x.shape)) if x_axis is None else jnp.moveaxis(x, x_axis, 0)
        return dropout_p.bind(x, words, strides=strides, **static), 0
    assert x_axis is not None
    masks = words.ndim - 1
    if x_axis < masks:
        x, x_axis = jnp.moveaxis(x, x_axis, masks), masks
    axis = x_axis - masks  # in common: one more shared axis
    words = jnp.insert(words, OFFSETS + axis, np.uint32(0), axis=-1)
    return dropout_p.bind(x, words, strides=(*strides[:axis], 0, *strides[axis:]), **static), x_axis


batching.primitive_batchers[dropout_p] = _map
