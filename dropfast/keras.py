"""Dropout layers for Keras 3 on its tensorflow, torch, jax and numpy backends: the same masks on all of them.

>>> import keras
>>> import dropfast.keras
>>> model = keras.Sequential([keras.layers.Dense(64), dropfast.keras.Dropout(0.5), keras.layers.Dense(10)])
"""

from __future__ import annotations

from dropfast import _doors

_doors.need("keras")

import random
from collections.abc import Callable, Iterable, Mapping
from typing import Any, SupportsIndex

import keras
import numpy as np
import numpy.typing as npt

from dropfast import _checks
from dropfast._checks import RateLike
from dropfast._mask import Mask

__all__ = ["Dropout", "SpatialDropout1D", "SpatialDropout2D", "SpatialDropout3D"]


# ---- the state, and a step on each backend -------------------------------------------------------


class _Masks(keras.random.SeedGenerator):
    """A key and the number of its masks that were drawn, as four 32-bit words, the low ones first.

    A seed generator to Keras, so that it is kept and traced like one, and counts as no weight of the model.
    """

    def __init__(self, key: int) -> None:
        self.name = "masks"
        self.state = keras.Variable(_words(key, 0), dtype="uint32", trainable=False, aggregation="none", name="state")


def _words(key: int, draw: int) -> npt.NDArray[np.uint32]:
    return np.array([key & 0xFFFFFFFF, key >> 32, draw & 0xFFFFFFFF, draw >> 32], np.uint32)


def _array(state: Any) -> npt.NDArray[np.uint32]:
    return np.asarray(keras.ops.convert_to_numpy(state), np.uint32)


def _key_and_draw(state: Any) -> tuple[int, int]:
    key_low, key_high, draw_low, draw_high = map(int, _array(state))
    return key_high << 32 | key_low, draw_high << 32 | draw_low


#: (state, x, rate, noise_shape) -> (y, the next state), as a pure function.
_Step = Callable[[Any, Any, float, "tuple[int | None, ...] | None"], tuple[Any, Any]]


def _eager(apply: Callable[[Mask, Any], Any]) -> _Step:
    """Return the step of a framework that calls Python, from its `apply`."""

    def step(state: Any, x: Any, rate: float, noise_shape: tuple[int | None, ...] | None) -> tuple[Any, Any]:
        key, draw = _key_and_draw(state)
        if draw >> 32:
            raise OverflowError(f"the layer's key {key} has given its 2**32 masks; make a layer with another seed")
        mask = Mask(tuple(x.shape), rate, key=key, draw=draw, noise_shape=noise_shape)
        return apply(mask, x), _words(key, draw + 1)

    return step


def _tensorflow() -> _Step:
    import tensorflow as tf

    import dropfast.tensorflow

    eager = _eager(dropfast.tensorflow.apply)

    def step(state: Any, x: Any, rate: float, noise_shape: tuple[int | None, ...] | None) -> tuple[Any, Any]:
        if tf.executing_eagerly():
            return eager(state, x, rate, noise_shape)
        words = tf.convert_to_tensor(state)
        key, draw = tf.bitcast(words[:2], tf.uint64), tf.bitcast(words[2:], tf.uint64)
        y = dropfast.tensorflow.dropout(x, rate, noise_shape, seed=(key, draw))
        return y, tf.concat([words[:2], tf.bitcast(draw + 1, tf.uint32)], 0)

    return step


def _jax() -> _Step:
    import jax

    import dropfast.jax

    eager = _eager(dropfast.jax.apply)

    def step(state: Any, x: Any, rate: float, noise_shape: tuple[int | None, ...] | None) -> tuple[Any, Any]:
        if not isinstance(state, jax.core.Tracer):
            return eager(state, x, rate, noise_shape)
        key_low, key_high, draw_low, draw_high = state
        # Compiled code cannot raise, so after 2**32 masks it goes on to another key rather than repeat one.
        key = jax.numpy.stack([key_high, key_low ^ draw_high])
        y = dropfast.jax.dropout(key, x, rate, noise_shape=noise_shape, draw=draw_low)
        following = draw_low + 1  # 0 after 2**32 - 1
        carry = (following == 0).astype(state.dtype)
        return y, jax.numpy.stack([key_low, key_high, following, draw_high + carry])

    return step


def _torch() -> _Step:
    import dropfast.torch

    return _eager(dropfast.torch.apply)


def _numpy() -> _Step:
    return _eager(Mask.apply)


_STEPS: dict[str, Callable[[], _Step]] = {"tensorflow": _tensorflow, "torch": _torch, "jax": _jax, "numpy": _numpy}

_backend = keras.config.backend()
if _backend not in _STEPS:
    raise ImportError(f"dropfast.keras needs a Keras backend of {', '.join(_STEPS)}, got {_backend}")
_step = _STEPS[_backend]()


# ---- the layers ----------------------------------------------------------------------------------


@keras.saving.register_keras_serializable(package="dropfast")
class Dropout(keras.Layer):
    """Dropout as `keras.layers.Dropout`, with dropfast's masks.

    Parameters
    ----------
    rate : float
        Probability that an element is dropped, in [0, 1], with a resolution of 2**-32.
    noise_shape : tuple of int or None, optional
        The shape of the mask: 1 on axes along which all elements share their fate; the full length, or None for one of
        any length, on others.
    seed : int, optional
        The layer's key is what ``rng=seed`` means to `dropfast.dropout`. Without it the key comes from Python's
        `random`, so that `keras.utils.set_random_seed` makes runs repeat.
    **kwargs
        What every Keras layer takes: ``name``, ``dtype``, ...

    Attributes
    ----------
    rate, noise_shape, seed
        As given.
    key : int
        The layer's stream of masks.
    draw : int
        The number of masks drawn so far, and the `draw` of the next one.

    Raises
    ------
    TypeError, ValueError
        For an argument of the wrong kind or out of range.
    OverflowError
        When a call would need more than the key's 2**32 masks. (In a graph of TensorFlow it is a
        `tf.errors.InvalidArgumentError`; code that JAX has compiled goes on with another key.)

    Notes
    -----
    Each call with ``training=True`` takes the next mask; other calls return the inputs, and draw nothing. Key and draw
    are state of the layer, saved and loaded with the model, so that a run that was interrupted continues bit for bit,
    on any backend. They are no weights, though: `get_weights` is what it is for a model with Keras' own layer.

    Examples
    --------
    >>> import keras
    >>> import numpy as np
    >>> import dropfast.keras
    >>> layer = dropfast.keras.Dropout(0.5, seed=0)
    >>> x = np.ones((2, 6), np.float32)
    >>> y = layer(x, training=True)
    >>> np.array_equal(keras.ops.convert_to_numpy(y), dropfast.Mask(x.shape, 0.5, key=layer.key, draw=0).apply(x))
    True
    >>> layer.draw
    1
    """

    def __init__(
        self,
        rate: RateLike,
        noise_shape: Iterable[SupportsIndex | None] | None = None,
        seed: int | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.rate = _checks.rate(rate)
        _, self.noise_shape = _checks.sharing_of_any_shape((), noise_shape)
        self.seed = None if seed is None else _checks.unsigned("seed", seed, 64)
        self.seed_generator = _Masks(random.getrandbits(64) if self.seed is None else _checks.new_key(self.seed))
        self.supports_masking = True
        self.supports_jit = _backend == "jax"  # by XLA, or by torch.compile; Keras then trains without it

    @property
    def key(self) -> int:
        """The layer's stream of masks."""
        return _key_and_draw(self.seed_generator.state)[0]

    @property
    def draw(self) -> int:
        """The number of masks drawn so far, and the `draw` of the next one."""
        return _key_and_draw(self.seed_generator.state)[1]

    def call(self, inputs: Any, training: bool = False) -> Any:
        """Return `inputs` with the next mask applied, or themselves if not training."""
        if not training:
            return inputs
        state = self.seed_generator.state
        outputs, following = _step(state.value, inputs, self.rate, self.noise_shape)
        state.assign(following)
        return outputs

    def compute_output_spec(self, inputs: Any, training: bool = False) -> Any:
        """Return what comes out for symbolic inputs: the same. Nothing is drawn for it."""
        return keras.KerasTensor(inputs.shape, inputs.dtype)

    def compute_output_shape(self, input_shape: Any) -> Any:
        """Return `input_shape`."""
        return input_shape

    def save_own_variables(self, store: Any) -> None:
        """Save key and draw, as four 32-bit words."""
        store["state"] = _array(self.seed_generator.state)

    def load_own_variables(self, store: Mapping[str, Any]) -> None:
        """Load key and draw; weights that were saved with Keras' own layer have none, and leave them as they are."""
        if "state" in store.keys():  # noqa: SIM118 (not every store of Keras is a mapping)
            self.seed_generator.state.assign(store["state"])

    def get_config(self) -> dict[str, Any]:
        """Return the arguments that make such a layer."""
        return {**super().get_config(), "rate": self.rate, "noise_shape": self.noise_shape, "seed": self.seed}


class _SpatialDropout(Dropout):
    """Dropout of whole channels: what lies along the axes of space shares its fate."""

    _dimensions: int  # of space

    def __init__(self, rate: RateLike, data_format: str | None = None, seed: int | None = None, **kwargs: Any) -> None:
        data_format = data_format or keras.config.image_data_format()
        if data_format not in ("channels_first", "channels_last"):
            raise ValueError(f"data_format must be 'channels_first' or 'channels_last', got {data_format!r}")
        space = (1,) * self._dimensions
        noise_shape = (None, None, *space) if data_format == "channels_first" else (None, *space, None)
        super().__init__(rate, noise_shape, seed, **kwargs)
        self.data_format = data_format
        self.input_spec = keras.layers.InputSpec(ndim=self._dimensions + 2)

    def get_config(self) -> dict[str, Any]:
        """Return the arguments that make such a layer."""
        config = {**super().get_config(), "data_format": self.data_format}
        del config["noise_shape"]
        return config


@keras.saving.register_keras_serializable(package="dropfast")
class SpatialDropout1D(_SpatialDropout):
    """Dropout of whole channels of (samples, steps, channels), as `keras.layers.SpatialDropout1D`.

    Parameters
    ----------
    rate, seed, **kwargs
        As in `Dropout`.
    """

    _dimensions = 1

    def __init__(self, rate: RateLike, seed: int | None = None, **kwargs: Any) -> None:
        super().__init__(rate, "channels_last", seed, **kwargs)

    def get_config(self) -> dict[str, Any]:
        """Return the arguments that make such a layer."""
        config = super().get_config()
        del config["data_format"]
        return config


@keras.saving.register_keras_serializable(package="dropfast")
class SpatialDropout2D(_SpatialDropout):
    """Dropout of whole channels of images, as `keras.layers.SpatialDropout2D`.

    Parameters
    ----------
    rate, seed, **kwargs
        As in `Dropout`.
    data_format : {'channels_last', 'channels_first'}, optional
        Where the channels are; by default where `keras.config.image_data_format` says.
    """

    _dimensions = 2


@keras.saving.register_keras_serializable(package="dropfast")
class SpatialDropout3D(_SpatialDropout):
    """Dropout of whole channels of volumes, as `keras.layers.SpatialDropout3D`.

    Parameters
    ----------
    rate, data_format, seed, **kwargs
        As in `SpatialDropout2D`.
    """

    _dimensions = 3
