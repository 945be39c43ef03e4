"""From a mask's numbers to its bits by the portable text: on any device, under XLA, and without dropfast."""

from __future__ import annotations

import functools
from typing import Any

import tensorflow as tf
from tensorflow.python.ops.control_flow_util import GraphOrParentsInXlaContext

from dropfast import _checks, _portable
from dropfast._portable import Array, Body
from dropfast.tensorflow._arguments import Numbers


class Arrays(_portable.Unrolled):
    """TensorFlow's tensors, for the portable text."""

    def words(self, numbers: list[int]) -> Array:
        return tf.constant(numbers, tf.int64)

    def arange(self, n: Any) -> Array:
        return tf.range(n, dtype=tf.int64)

    def right(self, words: Array, by: Any) -> Array:
        return tf.bitwise.right_shift(tf.cast(words, tf.int64), tf.cast(by, tf.int64))

    def left(self, words: Array, by: Any) -> Array:
        return tf.bitwise.left_shift(words, tf.cast(by, tf.int64))

    def where(self, condition: Array, a: Array, b: Any) -> Array:
        return tf.where(condition, a, tf.cast(b, a.dtype))

    def cast(self, array: Array, dtype: Any) -> Array:
        return tf.cast(array, {"word": tf.int64, "uint8": tf.uint8}.get(dtype, dtype))

    def widened(self, x: Array) -> Array:
        return tf.cast(x, tf.float32) if x.dtype.size == 2 else x

    def stack(self, arrays: list[Array]) -> Array:
        return tf.stack(arrays, axis=-1)

    def concatenate(self, arrays: list[Array]) -> Array:
        return tf.concat(arrays, axis=-1)

    def reshape(self, array: Array, shape: tuple[Any, ...]) -> Array:
        return tf.reshape(array, shape)


class ArraysOfXLA(_portable.Looped, Arrays):
    """The same in what XLA compiles."""

    def broadcast(self, array: Array, shape: tuple[Any, ...]) -> Array:
        return tf.broadcast_to(tf.cast(array, tf.int64), shape)

    def loop(self, n: int, body: Body, of: tuple[Array, ...]) -> Any:
        first = tf.constant(0, tf.int64)
        return tf.while_loop(lambda i, *_: i < n, lambda i, *of: (i + 1, *body(i, of)), (first, *of))[1:]


def select(x: Any, mask: Numbers) -> Any:
    """Return `x` with a mask applied, by TensorFlow's own operations, which have their own gradients."""
    if not tf.executing_eagerly():
        return _select(x, mask)
    key, draw = tf.constant(mask.key, tf.uint64), tf.constant(mask.draw, tf.int64)
    return _function(mask.threshold, mask.start, mask.strides)(x, tf.bitcast(key, tf.int64), draw)


def is_for_xla() -> bool:
    """Return whether XLA compiles the graph that is made now."""
    return bool(GraphOrParentsInXlaContext(tf.compat.v1.get_default_graph()))


@functools.lru_cache(maxsize=64)
def _function(threshold: int, start: int, strides: tuple[int, ...] | None) -> Any:
    """Return a graph for the many operations, each of which would cost an eager call more than a small mask."""
    return tf.function(lambda x, key, draw: _select(x, Numbers(key, draw, threshold, start, strides)), autograph=False)


def _select(x: Any, mask: Numbers) -> Any:
    xp = ArraysOfXLA() if is_for_xla() else Arrays()
    threshold = _pair(mask.threshold) if tf.is_tensor(mask.threshold) else mask.threshold
    numbers = (_pair(mask.key), _pair(mask.draw)[1], threshold)
    if mask.strides is not None:
        lengths = tf.shape(x, tf.int64)
        shape = tuple(lengths[axis] if n is None else n for axis, n in enumerate(x.shape))
        kept = _portable.keep(xp, shape, mask.strides, mask.start, *numbers)[0]
    else:  # the indices of the mask are those of its elements, from the first to the last
        whole = tf.shape(x, tf.int64)
        noise_shape = whole if mask.noise_shape is None else mask.noise_shape
        n = x.shape.num_elements() if mask.noise_shape is None else None
        kept = _portable.keep(xp, (tf.reduce_prod(noise_shape) if n is None else n,), (1,), 0, *numbers)[0]
        kept = tf.broadcast_to(tf.reshape(kept, noise_shape), whole)  # under XLA nobody has looked whether it fits
    y = _portable.select(xp, x, kept, _scale(x, mask.threshold))
    y.set_shape(x.shape)
    return y


def _pair(word: Any) -> tuple[Any, Any]:
    """Return the high and the low half of 64 bits."""
    if not tf.is_tensor(word):
        return tuple(tf.constant([half], tf.int64) for half in divmod(word, 1 << 32))
    return tf.bitwise.right_shift(word, 32)[None] & _portable.LOW, word[None] & _portable.LOW


def _scale(x: Any, threshold: Any) -> Any:
    if not tf.is_tensor(threshold):
        return _checks.scale(threshold)
    kept = tf.cast((1 << 32) - threshold, tf.float64)
    scale = tf.math.divide_no_nan(tf.constant(4294967296.0, tf.float64), kept)  # 0 if none is kept
    return tf.cast(scale, x.dtype if x.dtype == tf.float64 else tf.float32)
