"""The promise that nobody stands before the wrong door for long: each opens by itself, and sends others on."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import dask.array as da
import jax
import keras
import numpy as np
import pytest
import tensorflow as tf
import torch
from processes import run_copy, run_python

import dropfast


class Child(torch.Tensor):
    pass


def under_jit(call: Callable[[Any], Any]) -> None:
    jax.jit(call)(jax.numpy.ones((2, 3)))


ARRAYS: dict[str, tuple[Callable[[], Any], str]] = {
    "torch.Tensor": (lambda: torch.ones(2, 3), "Tensor; for PyTorch there is dropfast.torch"),
    "torch.nn.Parameter": (
        lambda: torch.nn.Parameter(torch.ones(2, 3)),
        "Parameter; for PyTorch there is dropfast.torch",
    ),
    "a subclass": (lambda: torch.ones(2, 3).as_subclass(Child), "Child; for PyTorch there is dropfast.torch"),
    "jax.Array": (lambda: jax.numpy.ones((2, 3)), "ArrayImpl; for JAX there is dropfast.jax"),
    "tf.Tensor": (lambda: tf.ones((2, 3)), "EagerTensor; for TensorFlow there is dropfast.tensorflow"),
    "tf.Variable": (
        lambda: tf.Variable(tf.ones((2, 3))),
        "ResourceVariable; for TensorFlow there is dropfast.tensorflow",
    ),
    "dask.array.Array": (lambda: da.ones((2, 3)), "Array; for Dask there is dropfast.dask"),
    "keras.KerasTensor": (lambda: keras.Input((2, 3)), "KerasTensor; for Keras there is dropfast.keras"),
    "keras.Variable": (lambda: keras.Variable(np.ones((2, 3))), "Variable; for Keras there is dropfast.keras"),
    "no array": (lambda: torch.nn.Linear(2, 3), "Linear"),
}
CALLS: dict[str, Callable[[Any], Any]] = {
    "dropout": lambda x: dropfast.dropout(x, rng=0),
    "Mask.apply": dropfast.Mask((2, 3), key=0).apply,
    "Dropout": dropfast.Dropout(rng=0),
}


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("array", ARRAYS)
def test_the_array_of_a_framework_is_sent_to_its_door(array: str, call: str) -> None:
    make, got = ARRAYS[array]
    with pytest.raises(TypeError) as raised:
        CALLS[call](make())
    assert str(raised.value) == f"x must be a numpy.ndarray, got {got}"


@pytest.mark.parametrize("call", CALLS)
def test_a_tracer_is_sent_to_the_door_of_jax(call: str) -> None:
    with pytest.raises(TypeError, match=r"^x must be a numpy.ndarray, got \w*Tracer; for JAX there is dropfast.jax\b"):
        under_jit(CALLS[call])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: dropfast.torch.dropout(jax.numpy.ones(3)),
            "input must be a torch.Tensor, got ArrayImpl; for JAX there is dropfast.jax",
        ),
        (
            lambda: dropfast.dask.dropout(torch.ones(3)),
            "x must be a dask.array.Array, got Tensor; for PyTorch there is dropfast.torch",
        ),
        (
            lambda: dropfast.jax.dropout(jax.random.key(0), da.ones(3), 0.5),
            "x must be a jax.Array or a numpy.ndarray, got Array; for Dask there is dropfast.dask",
        ),
    ],
    ids=["torch", "dask", "jax"],
)
def test_so_do_the_doors(call: Callable[[], Any], message: str) -> None:
    with pytest.raises(TypeError) as raised:
        call()
    assert str(raised.value) == message


@pytest.mark.parametrize("door", ["dask", "jax", "keras", "tensorflow", "torch"])
def test_a_door_opens_when_it_is_first_used(door: str) -> None:
    code = f"""
import sys, warnings
import dropfast
assert "dropfast.{door}" not in sys.modules and {door!r} not in sys.modules
warnings.simplefilter("default")  # what the framework warns of is its own
assert {"Dropout" if door == "keras" else "dropout"!r} in dropfast.{door}.__all__
"""
    done = run_python(code)
    assert done.returncode == 0, done.stderr


USES = {
    "dask": """
import dask.array as da
def use(): return dropfast.dask.dropout(da.ones((8, 8), chunks=2)).compute(scheduler="threads")
""",
    "jax": """
import jax
def use(): return jax.jit(lambda x: dropfast.jax.dropout(jax.random.key(0), x, 0.5))(jax.numpy.ones(9))
""",
    "keras": """
import keras
def use(): return dropfast.keras.Dropout(0.5)(keras.ops.ones((2, 3)), training=True)
""",
    "tensorflow": """
import tensorflow as tf
def use(): return tf.function(lambda x: dropfast.tensorflow.dropout(x, 0.5), autograph=False)(tf.ones(9))
""",
    "torch": """
import torch
def use(): return dropfast.torch.Dropout(0.5)(torch.ones(9))
""",
}


@pytest.mark.parametrize("door", USES)
def test_the_twin_does_not_come_silently_through_a_door(package: Path, door: str) -> None:
    code = f"""
import warnings
import numpy as np
warnings.simplefilter("ignore")  # what the framework warns of is its own
{USES[door]}
with warnings.catch_warnings(record=True) as said:
    warnings.filterwarnings("always", "dropfast runs on NumPy")
    for _ in range(3):
        np.asarray(use())  # waits for it
print(len(said))
"""
    done = run_copy(package, code)
    assert done.stdout.split() == ["1"], done.stderr
