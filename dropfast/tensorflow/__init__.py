"""Dropout for TensorFlow: eager, in `tf.function` and in TensorFlow 1's graphs, with the masks of `dropfast.Mask`.

>>> import tensorflow as tf
>>> import dropfast.tensorflow
>>> x = tf.ones((2, 6))
>>> dropfast.tensorflow.dropout(x, 0.5, seed=(7, 0)).numpy()  # key 7, draw 0
array([[2., 0., 2., 2., 0., 2.],
       [0., 0., 0., 2., 0., 2.]], dtype=float32)
"""

from dropfast import _doors

_doors.need("tensorflow")

from dropfast.tensorflow.functions import apply, dropout

__all__ = ["apply", "dropout"]

for _name in __all__:  # which room a thing stands in is no promise
    globals()[_name].__module__ = __name__
del _name
