"""What docs/guarantees.md says of others, where it can be measured: a version that behaves differently fails here."""

from collections.abc import Callable
from typing import Any, TypeAlias

import jax
import ml_dtypes
import numpy as np
import pytest
import tensorflow as tf
import torch

from dropfast import Mask

Drop: TypeAlias = Callable[[Any, float, int], Any]
BFLOAT16 = np.dtype(ml_dtypes.bfloat16)


def by_dropfast(x: Any, rate: float, seed: int) -> Any:
    return Mask(x.shape, rate, key=seed).apply(x)


def by_numpy(x: Any, rate: float, seed: int) -> Any:
    """The idiom of most tutorials."""
    with np.errstate(all="ignore"):
        return x * (np.random.default_rng(seed).random(x.shape) >= rate) / (1 - rate)


def by_torch(x: Any, rate: float, seed: int) -> Any:
    torch.manual_seed(seed)
    return torch.nn.functional.dropout(torch.from_numpy(x), rate).numpy()


def by_tensorflow(x: Any, rate: float, seed: int) -> Any:
    return tf.nn.experimental.stateless_dropout(x, rate, seed=[seed, 1]).numpy()


def by_jax(x: Any, rate: float, seed: int) -> Any:
    """What Flax does."""
    kept = jax.random.bernoulli(jax.random.key(seed), 1 - rate, x.shape)
    with np.errstate(all="ignore"):
        return np.where(np.asarray(kept), x / (1 - rate), 0)


ALL: dict[str, Drop] = {
    "dropfast": by_dropfast,
    "numpy": by_numpy,
    "torch": by_torch,
    "tensorflow": by_tensorflow,
    "jax": by_jax,
}
each = pytest.mark.parametrize("name", ALL)


@each
def test_inf_that_is_dropped(name: str) -> None:
    y = ALL[name](np.full(1000, np.inf, np.float32), 0.5, 0)
    dropped = y[~np.isposinf(y)]
    assert 400 < dropped.size < 600
    if name in ("numpy", "torch"):  # they multiply by the mask
        assert np.isnan(dropped).all()
    else:
        assert dropped.tobytes() == bytes(dropped.nbytes)  # +0.0


@each
def test_a_rate_of_1(name: str) -> None:
    x = np.array([1, -1, np.inf], np.float32)
    if name == "tensorflow":
        with pytest.raises(ValueError, match="rate"):
            ALL[name](x, 1.0, 0)
        return
    nan = np.isnan(ALL[name](x, 1.0, 0)).tolist()
    assert nan == {"numpy": [True, True, True], "torch": [False, False, True]}.get(name, [False, False, False])


@each
def test_small_rates(name: str) -> None:
    """Of 2^26 elements a rate of 2^-30 drops a sixteenth, and one of 2^-25 drops 2."""
    x = np.ones(1 << 26, np.float32)
    tiny, small = (int(np.count_nonzero(ALL[name](x, rate, 7) == 0)) for rate in (2.0**-30, 2.0**-25))
    if name == "tensorflow":  # the smallest uniform but 0 is 2^-23
        assert tiny > 1
    elif name == "jax":  # 1 - rate is 1 in float32
        assert (tiny, small) == (0, 0)
    else:
        assert tiny <= 1
        assert 1 <= small <= 10


@pytest.mark.parametrize("name", ["dropfast", "tensorflow"])
def test_the_rate_in_bfloat16(name: str) -> None:
    n = 1 << 22
    dropped = np.count_nonzero(ALL[name](np.ones(n, BFLOAT16), 0.1, 0) == 0) / n
    assert abs(dropped - (0.1015625 if name == "tensorflow" else 0.1)) < 0.0007  # uniforms of 7 bits


@each
def test_the_mask_of_another_dtype(name: str) -> None:
    single, double = (ALL[name](np.ones(1000, dtype), 0.3, 0) != 0 for dtype in (np.float32, np.float64))
    assert np.array_equal(single, double) == (name != "tensorflow")


@pytest.mark.parametrize("name", ["dropfast", "torch"])
def test_the_mask_of_another_layout(name: str) -> None:
    """Channels last, as convolutions on CPUs like it."""
    x = np.ones((2, 4, 4, 8), np.float32).transpose(0, 3, 1, 2)
    last, first = (ALL[name](layout, 0.5, 0) for layout in (x, np.ascontiguousarray(x)))
    assert np.array_equal(last, first) == (name == "dropfast")


def test_what_pytorch_keeps_for_the_backward_pass() -> None:
    """As many bytes as the input has: measured by what autograd saves."""
    nbytes = []

    def save(tensor: Any) -> Any:
        nbytes.append(tensor.nbytes)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(save, lambda tensor: tensor):
        torch.nn.functional.dropout(torch.ones(1000, requires_grad=True), 0.5)
    assert sum(nbytes) >= 4000
