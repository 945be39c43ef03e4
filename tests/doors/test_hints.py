"""The promise that nobody stands before the wrong door for long: each opens by itself, and sends others on."""

from collections.abc import Callable
from typing import Any

import dask.array as da
import jax
import keras
import numpy as np
import pytest
import tensorflow as tf
import torch
from processes import run_python

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
