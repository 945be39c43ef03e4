"""A plugin of pytest for Keras' own tests: with dropfast's layers where they mean Keras'."""

import keras.src.layers

import dropfast.keras

for name in ("Dropout", "SpatialDropout1D", "SpatialDropout2D", "SpatialDropout3D"):
    for module in (keras.layers, keras.src.layers):
        setattr(module, name, getattr(dropfast.keras, name))
