"""How each backend of Keras takes the next mask of a layer, and applies it."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
from keras.src.backend.common.stateless_scope import in_stateless_scope

from dropfast._mask import Mask
from dropfast.keras._masks import Masks, key_and_draw

NoiseShape = tuple[int | None, ...] | None

#: (masks, inputs, rate, noise_shape) -> what the next mask makes of each of the inputs.
Step = Callable[[Masks, list[Any], float, NoiseShape], list[Any]]


def _eager(apply: Callable[[Mask, Any], Any], take: Callable[[Masks], tuple[int, int]] = Masks.take) -> Step:
    """Return the step of a framework that calls Python, from its `apply`."""

    def step(masks: Masks, inputs: list[Any], rate: float, noise_shape: NoiseShape) -> list[Any]:
        key, draw = take(masks)
        return [apply(Mask(tuple(x.shape), rate, key=key, draw=draw, noise_shape=noise_shape), x) for x in inputs]

    return step


def _tensorflow() -> Step:
    import tensorflow as tf

    import dropfast.tensorflow
    from dropfast.keras._recomputed import in_tensorflow

    @functools.cache
    def section() -> Any:
        with tf.init_scope():
            return tf.CriticalSection(shared_name="dropfast.keras")

    def count(masks: Masks) -> Any:
        state = masks.state
        if tf.executing_eagerly():
            return tf.constant(masks.count())
        words = tf.identity(state.value)
        draw = tf.bitcast(words[2:], tf.uint64)
        # As Masks.count does. What is beyond the last mask is refused when the section was left, for it stays closed
        # while an error is looked at.
        following = tf.concat([words[:2], tf.bitcast(draw + tf.cast(draw < 1 << 32, tf.uint64), tf.uint32)], 0)
        if in_stateless_scope():
            state.assign(following)
            return words
        with tf.control_dependencies([state.value.assign(following, read_value=False)]):
            return tf.identity(words)  # not before the section may be left

    def words_of(masks: Masks) -> Any:
        def new() -> Any:
            return count(masks) if in_stateless_scope() else section().execute(lambda: count(masks))

        return in_tensorflow(masks.taken, new)

    eager = _eager(dropfast.tensorflow.apply, lambda masks: key_and_draw(words_of(masks).numpy()))

    def step(masks: Masks, inputs: list[Any], rate: float, noise_shape: NoiseShape) -> list[Any]:
        if tf.executing_eagerly():
            return eager(masks, inputs, rate, noise_shape)
        lengths = [
            tf.where([n == 1 for n in noise_shape], 1, tf.shape(x)) if noise_shape else tf.shape(x) for x in inputs
        ]
        refusal = "inputs must have one shape to get one mask"
        with tf.control_dependencies([tf.debugging.assert_equal(x, lengths[0], refusal) for x in lengths[1:]]):
            words = words_of(masks)  # what is refused draws nothing
        key, draw = tf.bitcast(words[:2], tf.uint64), tf.bitcast(words[2:], tf.uint64)
        return [dropfast.tensorflow.dropout(x, rate, noise_shape, seed=(key, draw)) for x in inputs]

    return step


def _jax() -> Step:
    import jax

    import dropfast.jax

    eager = _eager(dropfast.jax.apply)

    def step(masks: Masks, inputs: list[Any], rate: float, noise_shape: NoiseShape) -> list[Any]:
        state = masks.state.value
        if not isinstance(state, jax.core.Tracer):
            if not in_stateless_scope() and is_compiled(inputs):
                raise ValueError(
                    "a layer that JAX compiles needs its state as data, or each run would have the same mask: "
                    "compile stateless_call, got a call"
                )
            return eager(masks, inputs, rate, noise_shape)
        key_low, key_high, draw_low, draw_high = state
        # Compiled code cannot raise, so after 2**32 masks it goes on to another key rather than repeat one.
        key = jax.numpy.stack([key_high, key_low ^ draw_high])
        following = draw_low + 1  # 0 after 2**32 - 1
        carry = (following == 0).astype(state.dtype)
        masks.state.assign(jax.numpy.stack([key_low, key_high, following, draw_high + carry]))
        return [dropfast.jax.dropout(key, x, rate, noise_shape=noise_shape, draw=draw_low) for x in inputs]

    def is_compiled(inputs: list[Any]) -> bool:
        """Return whether what is computed here is kept for later runs; under grad alone, for one, it is not."""
        return any(isinstance(x, jax.core.Tracer) for x in inputs) and isinstance(
            jax.numpy.add(np.uint32(0), np.uint32(0)), jax.core.Tracer
        )

    return step


def _torch() -> Step:
    import dropfast.torch
    from dropfast.keras._recomputed import in_torch

    return _eager(dropfast.torch.apply, lambda masks: in_torch(masks.taken, masks.take))


def _numpy() -> Step:
    return _eager(Mask.apply)


_STEPS: dict[str, Callable[[], Step]] = {"tensorflow": _tensorflow, "torch": _torch, "jax": _jax, "numpy": _numpy}

_backend = keras.config.backend()
if _backend not in _STEPS:
    raise ImportError(f"dropfast.keras needs a Keras backend of {', '.join(_STEPS)}, got {_backend}")
step = _STEPS[_backend]()

#: Whether Keras may compile what has layers of ours in it, by XLA or by torch.compile; otherwise it trains without.
supports_jit = _backend == "jax"
