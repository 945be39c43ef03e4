"""What is legal here: arguments that may be tensors, whose values a graph does not know before it runs."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

from dropfast import _checks


class Numbers(NamedTuple):
    """A mask for x as numbers, most of which a graph may have still to compute; those are scalars of int64.

    As in a recipe (`_checks.Recipe`), but for what is not known before x is: without `strides` x is the whole, and
    shares the axes where `noise_shape`, a tensor of int64, is 1; none if there is none.
    """

    key: Any
    draw: Any
    threshold: Any
    start: int = 0
    strides: tuple[int, ...] | None = None
    noise_shape: Any = None


def boolean(name: str, value: Any) -> None:
    """Raise if this is no boolean, least of all a tensor, which would have none to say while a graph is made."""
    if not isinstance(value, bool):
        raise TypeError(f"{name} must be True or False, got {type(value).__name__}")


def tensor(x: Any) -> Any:
    """Return `x` as a tensor of a dtype that dropout takes; a graph would say so late."""
    x = tf.convert_to_tensor(x, name="x")
    dtype = np.dtype(x.dtype.as_numpy_dtype)
    if not _checks.takes(dtype):
        raise _checks.wrong_dtype(dtype)
    return x


def threshold(rate: Any) -> Any:
    """Return the threshold of a rate: a number, or in a graph a tensor if the rate is one."""
    if isinstance(rate, float) or not tf.is_tensor(rate):  # which takes its time
        return _checks.threshold(_checks.rate(rate))
    if not rate.dtype.is_floating or rate.shape.rank not in (0, None):
        raise TypeError(f"rate must be a real number in [0, 1] or a scalar tensor of floats, got {rate!r}")
    if tf.executing_eagerly():
        return _checks.threshold(_checks.rate(float(rate.numpy())))
    rate = tf.cast(_scalar(rate), tf.float64)
    rate = _required((rate >= 0) & (rate <= 1), rate, "rate must be in [0, 1], got", rate)
    return tf.cast(tf.round(rate * 4294967296.0), tf.int64)  # half to even, as `_checks.threshold`


def key_and_draw(seed: Any) -> tuple[Any, Any]:
    """Return the key and the draw that a seed stands for, as integers or as scalar tensors of int64."""
    if seed is None:
        return _random_key(), 0
    if isinstance(seed, (int, np.integer)):
        return _checks.new_key(_checks.unsigned("seed", seed, 64)), 0
    try:
        key, draw = tf.unstack(seed) if tf.is_tensor(seed) else seed
    except (TypeError, ValueError):
        raise TypeError(f"seed must be None, an integer or a pair (key, draw), got {seed!r}") from None
    return _word("key", key, 64), _word("draw", draw, 32)


def _random_key() -> Any:
    """Return a key that `tf.random.set_seed` governs: a number, or in a graph a tensor, new in each execution."""
    if not tf.executing_eagerly():
        # All values but one: what uniform cannot give is its own maxval.
        return tf.random.uniform((), tf.int64.min, tf.int64.max, tf.int64)
    # Not the same in eager mode, where the operation would take longer than many a mask. Two seeds, of 31 bits each.
    (_, first), (of_all, second) = tf.compat.v1.get_seed(None), tf.compat.v1.get_seed(None)
    return _checks.new_key(None if first is None else (of_all, first, second))


def _word(name: str, value: Any, bits: int) -> Any:
    """Return an integer in [0, 2**bits), or in a graph the 64 bits of one, if it is a tensor."""
    if not tf.is_tensor(value):
        return _checks.unsigned(name, value, bits)
    if not value.dtype.is_integer or value.shape.rank not in (0, None):
        raise TypeError(f"{name} must be an integer or a scalar integer tensor, got {value!r}")
    if tf.executing_eagerly():
        return _checks.unsigned(name, value.numpy(), bits)
    value = _scalar(value)
    word = tf.bitcast(value, tf.int64) if value.dtype == tf.uint64 else tf.cast(value, tf.int64)
    if value.dtype.min == 0 and value.dtype.max < 1 << bits:
        return word
    legal = word >= 0 if bits == 64 else (word >= 0) & (word < 1 << bits)
    return _required(legal, word, f"{name} must be in [0, 2**{bits}), got", value)


def sharing(x: Any, noise_shape: Any) -> tuple[tuple[int, ...] | None, Any]:
    """Return what a noise_shape says of a mask for x: `strides` and `noise_shape` of `Numbers`."""
    if noise_shape is None:
        return None, None
    entries, shape = _entries(noise_shape), x.shape
    if tf.is_tensor(entries) or shape.rank is None:
        return None, _computed(x, entries)
    lengths = tuple(None if tf.is_tensor(n) else n for n in entries)
    if len(entries) != shape.rank or any(n not in (None, 1, full or n) for n, full in zip(lengths, shape, strict=True)):
        raise _checks.wrong_noise_shape(tuple(shape), lengths)
    if not any(map(tf.is_tensor, entries)) and shape[1:].is_fully_defined():
        if shape.is_fully_defined():
            return _checks.sharing(tuple(shape), (), lengths)[0], None
        if lengths[0] in (None, 1):  # any number of samples: the strides are the same for all of them
            return _checks.sharing((2, *shape[1:]), (), lengths)[0], None
    return None, _computed(x, entries)


def _entries(noise_shape: Any) -> Any:
    """Return a noise_shape as a tuple of integers, None and scalar tensors, or as one tensor if it is one."""
    if tf.is_tensor(noise_shape):
        if not noise_shape.dtype.is_integer or noise_shape.shape.rank not in (1, None):
            raise _checks.not_a_noise_shape(noise_shape)
        known = tf.get_static_value(noise_shape)
        return noise_shape if known is None else tuple(known.tolist())
    try:
        entries = tuple(noise_shape)
        if not all(n.dtype.is_integer and n.shape.rank in (0, None) for n in entries if tf.is_tensor(n)):
            raise TypeError
        values = [tf.get_static_value(n) if tf.is_tensor(n) else n for n in entries]
        numbers = _checks.noise_lengths(values)
    except TypeError:
        raise _checks.not_a_noise_shape(noise_shape) from None
    return tuple(n if value is None else number for n, value, number in zip(entries, values, numbers, strict=True))


def _computed(x: Any, entries: Any) -> Any:
    """Return a noise_shape that is not known before the graph runs, and is looked at then."""
    if tf.is_tensor(entries):
        lengths = tf.cast(entries, tf.int64)
    else:
        lengths = tf.stack([tf.cast(1 if n is None else n, tf.int64) for n in entries])
    full = tf.shape(x, tf.int64)
    words = (_checks.NOISE_SHAPE + "; for the shape", full, "got", lengths)
    full = _required(tf.equal(tf.size(lengths), tf.rank(x)), full, *words)
    if not tf.is_tensor(entries):
        lengths = tf.where([n is None for n in entries], full, lengths)
    legal = tf.equal(lengths, 1) | tf.equal(lengths, full)  # == compares tensors by identity in TensorFlow 1's graphs
    return _required(tf.reduce_all(legal), lengths, *words)


def _scalar(value: Any) -> Any:
    """Return a tensor of a graph that is known to have no axes; the graph looks whether it is true."""
    return tf.ensure_shape(value, ()) if value.shape.rank is None else value


def _required(condition: Any, value: Any, *words: Any) -> Any:
    """Return a value of a running graph if a condition is true; an error with these words if not."""
    data = [tf.convert_to_tensor(word) for word in words]
    # Not tf.debugging.Assert, which is a conditional around this, and costs more than many a mask.
    with tf.control_dependencies([tf.raw_ops.Assert(condition=condition, data=data, summarize=_checks.MAX_NDIM)]):
        return tf.identity(value)
