"""The headline: one key and one draw are one mask, bit for bit, in NumPy and in every framework that has a door."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import dask.array as da
import jax
import ml_dtypes
import numpy as np
import pytest
import tensorflow as tf
import torch
from cases import DTYPES, MODES, Array, Shape, values
from elsewhere import DRAW, KEY, RATE, WAYS
from expected import assert_same_bits
from processes import run_file
from tensors import next_mask

import dropfast
import dropfast.dask
import dropfast.jax
import dropfast.tensorflow
import dropfast.torch
from dropfast.torch import _devices
from dropfast.torch._operators import state_of

assert KEY > 2**63  # most frameworks have signed integers only


def to_torch(x: Array) -> torch.Tensor:
    if x.dtype == ml_dtypes.bfloat16:
        return torch.from_numpy(x.view(np.int16).copy()).view(torch.bfloat16)
    return torch.from_numpy(x.copy())


def from_torch(y: torch.Tensor) -> Array:
    if y.dtype is torch.bfloat16:
        return y.view(torch.int16).numpy().view(ml_dtypes.bfloat16)
    return y.numpy()


def in_jax(function: Callable[[Any], Any], x: Array) -> Array:
    with jax.enable_x64(True):  # for float64
        return np.asarray(function(jax.numpy.asarray(x)))


def in_torch_operations(mask: dropfast.Mask, x: torch.Tensor) -> torch.Tensor:
    """What other devices compute, and compilers for them."""
    _, strides, start, key, draw, threshold = mask._recipe
    return _devices.apply(x, state_of(key, draw, start), strides, threshold)


Door = Callable[[dropfast.Mask, Array], Any]
DOORS: dict[str, Door] = {
    "numpy": lambda mask, x: mask.apply(x),
    "torch": lambda mask, x: from_torch(dropfast.torch.apply(mask, to_torch(x))),
    "torch-compiled": lambda mask, x: from_torch(
        torch.compile(lambda x: dropfast.torch.apply(mask, x), fullgraph=True, backend="aot_eager")(to_torch(x))
    ),
    "torch-portable": lambda mask, x: from_torch(in_torch_operations(mask, to_torch(x))),
    "tensorflow": lambda mask, x: dropfast.tensorflow.apply(mask, tf.constant(x)).numpy(),
    "tensorflow-graph": lambda mask, x: tf.function(lambda x: dropfast.tensorflow.apply(mask, x))(
        tf.constant(x)
    ).numpy(),
    "jax": lambda mask, x: in_jax(lambda x: dropfast.jax.apply(mask, x), x),
    "jax-jit": lambda mask, x: in_jax(jax.jit(lambda x: dropfast.jax.apply(mask, x)), x),
    "dask": lambda mask, x: dropfast.dask.apply(mask, da.from_array(x, chunks=(5, 17))).compute(),
}


@pytest.mark.parametrize("mode", ["per-sample", "shared-first", "shared-last"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("door", DOORS)
def test_one_key_one_mask(door: str, dtype: str, mode: str) -> None:
    shape: Shape = (24, 100)
    x = values(shape, DTYPES[dtype])
    mask = dropfast.Mask(shape, RATE, key=KEY, draw=DRAW, **MODES[mode](shape))
    assert_same_bits(DOORS[door](mask, x), mask.apply(x))


# Where subnormals are flushed to 0, as XLA and TensorFlow do.
FLUSHING: dict[str, Door] = {
    "tensorflow-portable": lambda mask, x: dropfast.tensorflow.apply(mask, tf.constant(x), portable=True).numpy(),
    "tensorflow-xla": lambda mask, x: tf.function(lambda x: dropfast.tensorflow.apply(mask, x), jit_compile=True)(
        tf.constant(x)
    ).numpy(),
    "jax-portable": lambda mask, x: in_jax(jax.jit(lambda x: dropfast.jax.apply(mask, x, portable=True)), x),
}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("door", FLUSHING)
def test_one_key_one_mask_of_normal_numbers(door: str, dtype: str) -> None:
    x = np.random.default_rng(0).uniform(1, 2, (24, 100)).astype(DTYPES[dtype])
    mask = dropfast.Mask(x.shape, RATE, key=KEY, draw=DRAW)
    assert_same_bits(FLUSHING[door](mask, x), mask.apply(x))


@pytest.mark.parametrize("way", WAYS)
def test_one_key_one_mask_elsewhere(way: str, tmp_path: Path) -> None:
    """In processes of their own: spread over devices and ranks, on a GPU as it is interpreted, in a saved model."""
    x = np.random.default_rng(0).standard_normal((24, 100), np.float32)
    mask = dropfast.Mask(x.shape, RATE, key=KEY, draw=DRAW)
    np.save(tmp_path / "x.npy", x)
    module = tf.Module()
    module.__call__ = tf.function(
        lambda x: dropfast.tensorflow.apply(mask, x, portable=True), input_signature=[tf.TensorSpec(x.shape)]
    )
    tf.saved_model.save(module, str(tmp_path / "model"))
    tests = Path(__file__).parents[1]
    done = run_file(
        tests / "elsewhere.py", way, str(tmp_path), env={"PYTHONPATH": f"{tests}:{Path(sys.prefix) / 'triton'}"}
    )
    assert done.returncode == 0, done.stderr
    assert_same_bits(np.load(tmp_path / "y.npy"), mask.apply(x))


@pytest.mark.parametrize("door", DOORS)
def test_one_key_one_mask_in_shards(door: str) -> None:
    x = values((24, 100), DTYPES["float32"])
    mask = dropfast.Mask(x.shape, 0.3, key=KEY, draw=DRAW)
    shards = [DOORS[door](mask.window((row, 0), (8, 100)), x[row : row + 8]) for row in range(0, 24, 8)]
    assert_same_bits(np.concatenate(shards), mask.apply(x))


def test_the_words_of_each_framework_mean_the_same_mask() -> None:
    """A key, where a framework has its own word for it."""
    x = np.ones((24, 100), np.float32)
    expected = dropfast.Mask(x.shape, 0.5, key=123, draw=0).apply(x)
    assert_same_bits(np.asarray(dropfast.jax.dropout(jax.random.key(123), x, 0.5)), expected)
    assert_same_bits(dropfast.tensorflow.dropout(tf.constant(x), 0.5, seed=(123, 0)).numpy(), expected)
    rng = np.random.default_rng(5)
    by_rng = dropfast.dropout(x, 0.5, rng=5)
    assert_same_bits(dropfast.dask.dropout(da.from_array(x, chunks=7), 0.5, rng=rng).compute(), by_rng)
    assert_same_bits(dropfast.tensorflow.dropout(tf.constant(x), 0.5, seed=5).numpy(), by_rng)
    mask = next_mask(x.shape)
    assert_same_bits(from_torch(dropfast.torch.Dropout(0.5)(torch.from_numpy(x))), mask.apply(x))
