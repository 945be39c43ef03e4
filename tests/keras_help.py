"""What the tests of dropfast.keras have in common."""

from typing import Any

import keras
import numpy as np
from cases import DTYPES, Array

from dropfast import Mask
from dropfast.keras import Dropout, SpatialDropout1D, SpatialDropout2D, SpatialDropout3D

BACKEND = keras.config.backend()
SPATIAL = {"1D": SpatialDropout1D, "2D": SpatialDropout2D, "3D": SpatialDropout3D}


def ones(*shape: int, dtype: Any = np.float32) -> Array:
    return np.ones(shape, dtype)


def tensor(x: Array) -> Any:
    return keras.ops.convert_to_tensor(x, dtype=x.dtype.name)


def array(y: Any) -> Array:
    """The array of a tensor; of bfloat16, that not all backends can give away, with every bit of it."""
    dtype = keras.backend.standardize_dtype(y.dtype)
    wide = keras.ops.convert_to_numpy(keras.ops.cast(y, "float32") if dtype == "bfloat16" else y)
    return np.asarray(wide).astype(DTYPES[dtype])


def words(state: Any) -> list[int]:
    """The four words of a layer's state."""
    return list(map(int, keras.ops.convert_to_numpy(state)))


def mask_of(layer: Dropout, shape: tuple[int, ...], draw: int) -> Mask:
    return Mask(shape, layer.rate, key=layer.key, draw=draw, noise_shape=layer.noise_shape)


def set_state(layer: Dropout, key: int, draw: int) -> None:
    words = [key & 0xFFFFFFFF, key >> 32, draw & 0xFFFFFFFF, draw >> 32]
    layer.seed_generator.state.assign(np.array(words, np.uint32))


class Scale(keras.layers.Layer):
    """Times weights of its own, which are 1 at first: their gradient tells what comes after and before."""

    def build(self, shape: Any) -> None:
        self.scale = self.add_weight(shape=shape[-1:], initializer="ones")

    def call(self, inputs: Any) -> Any:
        return inputs * self.scale

    def compute_output_shape(self, input_shape: Any) -> Any:
        return input_shape


class Total(keras.losses.Loss):
    """The sum of what comes out, whatever it should be."""

    def call(self, y_true: Any, y_pred: Any) -> Any:
        return keras.ops.sum(y_pred, axis=-1)


def gradients(model: Any, x: Array, **how: Any) -> list[Array]:
    """The gradients of the total of what a model with Scales makes of x, from one step of fit."""
    model.compile(keras.optimizers.SGD(1.0), Total(), **how)
    model.fit(x, x, batch_size=len(x), verbose=0)
    return [1 - weight for weight in model.get_weights()]
