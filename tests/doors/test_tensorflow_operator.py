"""The operator that TensorFlow reaches the kernels by: what it refuses, and what takes its place where it cannot be."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from in_tensorflow import each_way
from processes import OTHER_KERNELS, run_python

import dropfast.tensorflow
from dropfast.tensorflow import _roads

OPERATOR = Path(dropfast.tensorflow.__file__).with_name("_operator.so")

OPERANDS = {
    "no-strides-but-three": ((2, 3), np.zeros(3, np.int64), "the words of a mask"),
    "one-stride-of-two": ((2, 3), np.zeros(5, np.int64), "the words of a mask"),
    "words-in-rows": ((2, 3), np.zeros((2, 2), np.int64), "the words of a mask"),
    "65-axes": ((1,) * 65, np.zeros(4, np.int64), "16, 32 and 64 bit floats with at most 64 axes"),
}


@each_way
@pytest.mark.parametrize(("shape", "words", "message"), OPERANDS.values(), ids=OPERANDS)
def test_operands_that_fit_no_mask_are_refused(shape: tuple[int, ...], words: Any, message: str, way: Any) -> None:
    operator = _roads._operator()
    with pytest.raises(tf.errors.InvalidArgumentError, match=f"dropfast takes {message}"):
        way(operator)(tf.ones(shape), tf.constant(words))


def test_where_tensorflow_lacks_its_interface_python_takes_its_place() -> None:
    """It looks for the interface when it is loaded: here before there is a TensorFlow."""
    code = """
import ctypes, sys, warnings
ctypes.CDLL(sys.argv[1])
with warnings.catch_warnings(record=True, action="always") as caught:
    import numpy as np
    import tensorflow as tf
    import dropfast.tensorflow
(warning,) = (one for one in caught if "dropfast" in str(one.message))
assert warning.category is RuntimeWarning
print(warning.message)
x = np.random.default_rng(7).standard_normal((5, 40)).astype(np.float32)
mask_of_5 = dropfast.Mask(x.shape, 0.3, key=5, draw=7)
for how in ({}, {"shared_axes": 0}):
    mask = dropfast.Mask(x.shape, 0.3, key=2**63 + 5, draw=7, **how)
    def both(x):
        with tf.GradientTape() as tape:
            tape.watch(x)
            y = dropfast.tensorflow.apply(mask, x)
        return y, tape.gradient(y, x)
    assert dropfast.tensorflow.dropout(x, 0.3, seed=(5, 7)).numpy().tobytes() == mask_of_5.apply(x).tobytes()
    for way in (both, tf.function(both)):
        y, dx = way(tf.constant(x))
        assert y.shape == x.shape
        assert y.numpy().tobytes() == mask.apply(x).tobytes()
        assert dx.numpy().tobytes() == mask.apply(np.ones_like(x)).tobytes()
"""
    done = run_python(code, str(OPERATOR))
    assert done.returncode == 0, done.stderr
    assert done.stdout == (
        "dropfast.tensorflow calls its kernels by way of Python, which is slower: its operator does not find the C "
        f"interface that it needs in TensorFlow {tf.__version__}\n"
    )


def test_kernels_of_another_version_are_refused_at_import() -> None:
    done = run_python(f"{OTHER_KERNELS}\nimport dropfast.tensorflow")
    words = "ImportError: dropfast.tensorflow._operator and dropfast._native are of different versions"
    assert done.stderr.splitlines()[-1] == words
