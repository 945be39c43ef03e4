"""The layers."""

from __future__ import annotations

import random
from collections.abc import Iterable, Mapping
from typing import Any, SupportsIndex

import keras
from keras.layers import Dropout as KerasDropout
from keras.src.backend.common.symbolic_scope import in_symbolic_scope

from dropfast import _checks
from dropfast._checks import RateLike
from dropfast.keras import _backends
from dropfast.keras._masks import Masks


def _may_be_the_same(one: tuple[int | None, ...], other: tuple[int | None, ...]) -> bool:
    return len(one) == len(other) and all(m == n or None in (m, n) for m, n in zip(one, other, strict=True))


@keras.saving.register_keras_serializable(package="dropfast")
class Dropout(KerasDropout):
    """Dropout as `keras.layers.Dropout`, which it is a subclass of, with dropfast's masks.

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
        super(KerasDropout, self).__init__(**kwargs)  # not Keras' own, which would make another generator
        self.rate = _checks.rate(rate)
        _, self.noise_shape = _checks.sharing_of_any_shape((), noise_shape)
        self.seed = None if seed is None else _checks.unsigned("seed", seed, 64)
        self.seed_generator = Masks(random.getrandbits(64) if self.seed is None else _checks.new_key(self.seed))
        self.supports_masking = True
        self.supports_jit = _backends.supports_jit
        self._build_at_init()

    @property
    def key(self) -> int:
        """The layer's stream of masks."""
        return self.seed_generator.key_and_draw[0]  # type: ignore[no-any-return,unused-ignore]

    @property
    def draw(self) -> int:
        """The number of masks drawn so far, and the `draw` of the next one."""
        return self.seed_generator.key_and_draw[1]  # type: ignore[no-any-return,unused-ignore]

    def call(self, inputs: Any, training: bool = False) -> Any:
        """Return `inputs` with the next mask applied, or themselves if not training.

        Parameters
        ----------
        inputs : tensor, or a list, tuple or dict of tensors
            All tensors of one call get the same mask, so that their shapes must be the same but for axes that share it.
        training : bool, default False
            Whether to drop.

        Returns
        -------
        tensor, or what `inputs` is, of tensors
            ``x * scale`` where kept, +0.0 where dropped.
        """
        branches = self._branches(inputs)
        if not training or in_symbolic_scope():
            return inputs
        outputs = _backends.step(self.seed_generator, branches, self.rate, self.noise_shape)
        if branches and branches[0] is inputs:  # PyTorch's trees would keep what is in them until garbage is collected
            return outputs[0]
        return keras.tree.pack_sequence_as(inputs, outputs)

    def _branches(self, inputs: Any) -> list[Any]:
        """Return the tensors of `inputs`; an error if there cannot be one mask for them."""
        branches: list[Any] = keras.tree.flatten(inputs)
        if len(branches) > 1:
            shapes = [self._shape_of_mask(tuple(x.shape)) for x in branches]
            if not all(_may_be_the_same(shape, shapes[0]) for shape in shapes):
                raise ValueError(
                    f"inputs must have one shape to get one mask, got {[tuple(x.shape) for x in branches]}"
                )
        return branches

    def _shape_of_mask(self, shape: tuple[int | None, ...]) -> tuple[int | None, ...]:
        """Return `shape` with 1 for axes that share the mask."""
        if self.noise_shape is None or len(self.noise_shape) != len(shape):  # which is found when there is a mask
            return shape
        return tuple(1 if n == 1 else length for n, length in zip(self.noise_shape, shape, strict=True))

    def compute_output_spec(self, inputs: Any, training: bool = False) -> Any:
        """Return what comes out for symbolic inputs: the same. Nothing is drawn for it."""
        self._branches(inputs)
        return keras.tree.map_structure(lambda x: keras.KerasTensor(x.shape, x.dtype), inputs)

    def compute_output_shape(self, input_shape: Any) -> Any:
        """Return `input_shape`."""
        return input_shape

    def rematerialized_call(self, layer_call: Any, *args: Any, **kwargs: Any) -> Any:
        """Return `layer_call`: nothing is kept for the gradient, so that there is nothing to compute again for it."""
        return layer_call

    def save_own_variables(self, store: Any) -> None:
        """Save key and draw, as four 32-bit words."""
        store["state"] = self.seed_generator.words

    def load_own_variables(self, store: Mapping[str, Any]) -> None:
        """Load key and draw; weights that were saved with Keras' own layer have none, and leave them as they are."""
        if "state" in store.keys():  # noqa: SIM118 (not every store of Keras is a mapping)
            self.seed_generator.state.assign(store["state"])

    def get_config(self) -> dict[str, Any]:
        """Return the arguments that make such a layer."""
        config = super(KerasDropout, self).get_config()
        return {**config, "rate": self.rate, "noise_shape": self.noise_shape, "seed": self.seed}


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

    def _branches(self, inputs: Any) -> list[Any]:
        ndim = self._dimensions + 2
        for x in keras.tree.flatten(inputs):  # not by an input_spec, which counts inputs
            if len(x.shape) != ndim:
                raise ValueError(f"{type(self).__name__} takes inputs of {ndim} axes, got the shape {tuple(x.shape)}")
        return super()._branches(inputs)

    def get_config(self) -> dict[str, Any]:
        """Return the arguments that make such a layer."""
        config = {**super().get_config(), "data_format": self.data_format}
        del config["noise_shape"]
        return config


@keras.saving.register_keras_serializable(package="dropfast")
class SpatialDropout1D(_SpatialDropout, keras.layers.SpatialDropout1D):
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
class SpatialDropout2D(_SpatialDropout, keras.layers.SpatialDropout2D):
    """Dropout of whole channels of images, as `keras.layers.SpatialDropout2D`.

    Parameters
    ----------
    rate : float
        As in `Dropout`.
    data_format : {'channels_last', 'channels_first'}, optional
        Where the channels are; by default where `keras.config.image_data_format` says.
    seed, **kwargs
        As in `Dropout`.
    """

    _dimensions = 2


@keras.saving.register_keras_serializable(package="dropfast")
class SpatialDropout3D(_SpatialDropout, keras.layers.SpatialDropout3D):
    """Dropout of whole channels of volumes, as `keras.layers.SpatialDropout3D`.

    Parameters
    ----------
    rate, data_format, seed, **kwargs
        As in `SpatialDropout2D`.
    """

    _dimensions = 3
