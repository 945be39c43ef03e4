"""TensorFlow's tensors and NumPy's arrays with the same bits, and the ways that a function of tensors runs."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from cases import Array

KEY, DRAW = 0x9E3779B97F4A7C15, 0xFFFFFFF7  # which need their highest bits

WAYS: dict[str, Callable[[Any], Any]] = {"eager": lambda f: f, "graph": tf.function}
each_way = pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
each_road = pytest.mark.parametrize("portable", [False, True], ids=["kernels", "portable"])


def array(y: Any) -> Array:
    assert isinstance(y, tf.Tensor)
    return np.asarray(y.numpy())


def noise(*shape: int, dtype: Any = np.float32) -> Array:
    return np.random.default_rng(7).standard_normal(shape).astype(dtype)
