"""The CNN in Keras with three dropouts: dropfast for each sample, dropfast shared by the batch, and Keras' own.

python examples/cnn_keras.py
KERAS_BACKEND=torch python examples/cnn_keras.py
"""

import logging
import os
from collections.abc import Callable

os.environ.setdefault("KERAS_BACKEND", "tensorflow")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")  # TensorFlow's words about itself

import cnn_common
import keras
import numpy as np
from cnn_common import BATCH, OWN, PER_SAMPLE, RATE, SHARED, UNITS
from keras import layers

import dropfast.keras

logging.getLogger("tensorflow").setLevel(logging.ERROR)  # it takes three models for one that is traced too often

DROPOUTS: dict[str, Callable[[int], keras.Layer]] = {
    PER_SAMPLE: lambda seed: dropfast.keras.Dropout(RATE, seed=seed),
    SHARED: lambda seed: dropfast.keras.Dropout(RATE, noise_shape=(1, UNITS), seed=seed),
    OWN: lambda seed: layers.Dropout(RATE, seed=seed),
}


class Network:
    """See `cnn_common.Network`."""

    def __init__(self, dropout: str, seed: int) -> None:
        def glorot(layer: int) -> keras.Initializer:
            return keras.initializers.GlorotUniform(seed=10 * seed + layer)

        self.dropout = DROPOUTS[dropout](seed)
        self.model = keras.Sequential(
            [
                keras.Input((28, 28, 1)),
                layers.Conv2D(32, 5, activation="relu", kernel_initializer=glorot(0)),
                layers.MaxPooling2D(),
                layers.Conv2D(64, 3, activation="relu", kernel_initializer=glorot(1)),
                layers.MaxPooling2D(),
                layers.Flatten(),
                layers.Dense(UNITS, kernel_initializer=glorot(2)),
                self.dropout,
                layers.Dense(10, kernel_initializer=glorot(3)),
            ]
        )
        self.model.compile(
            keras.optimizers.Adam(1e-3),
            keras.losses.SparseCategoricalCrossentropy(from_logits=True),
            metrics=["accuracy"],
            jit_compile=False,  # for all three alike: dropfast does not go through XLA
        )

    def step(self, images: np.ndarray, labels: np.ndarray) -> float:
        self.model.reset_metrics()
        loss, _ = self.model.train_on_batch(images[..., None], labels)
        return float(loss)

    def evaluate(self, images: np.ndarray, labels: np.ndarray) -> tuple[float, float]:
        self.model.reset_metrics()
        loss, accuracy = self.model.test_on_batch(images[..., None], labels)
        return float(loss), float(accuracy)

    def dropout_alone(self) -> Callable[[], object]:
        x = keras.random.normal((BATCH, UNITS))
        if keras.config.backend() != "tensorflow":
            return lambda: keras.ops.convert_to_numpy(self.dropout(x, training=True))
        import tensorflow as tf

        @tf.function  # as in training
        def forward_and_backward(x: tf.Tensor) -> tuple[tf.Tensor, list[tf.Tensor]]:
            y = self.dropout(x, training=True)
            return y, tf.gradients(y, x)

        return lambda: forward_and_backward(x)


if __name__ == "__main__":
    tensorflow = keras.config.backend() == "tensorflow"
    alone = "forward and backward in a graph" if tensorflow else "forward"
    cnn_common.main("Keras", "keras.layers.Dropout", alone, Network)
