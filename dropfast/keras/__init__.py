"""Dropout layers for Keras 3 on its tensorflow, torch, jax and numpy backends: the same masks on all of them.

>>> import keras
>>> import dropfast.keras
>>> model = keras.Sequential([keras.layers.Dense(64), dropfast.keras.Dropout(0.5), keras.layers.Dense(10)])
"""

from dropfast import _doors

_doors.need("keras")

from dropfast.keras.conversion import convert
from dropfast.keras.layers import Dropout, SpatialDropout1D, SpatialDropout2D, SpatialDropout3D

__all__ = ["Dropout", "SpatialDropout1D", "SpatialDropout2D", "SpatialDropout3D", "convert"]

for _name in __all__:  # which room a thing stands in is no promise, and saved models name this one
    globals()[_name].__module__ = __name__
del _name
