"""The portable text: the kernels' bits from operations on whole arrays, in each framework, compiled and not."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import ml_dtypes
import numpy as np
import pytest
import tensorflow as tf
import torch
from cases import DTYPES, MODES, RATES, Array, values
from expected import assert_same_bits
from tensors import IGNORE_THEIR_WARNINGS

import dropfast.jax._portable
import dropfast.torch._devices
from dropfast import Mask, _checks, _portable
from dropfast.tensorflow._portable import Arrays, ArraysOfXLA

pytestmark = IGNORE_THEIR_WARNINGS

Words = tuple[Array, ...]  # of start, key and draw, and of the threshold if that is data too

MASKS = {
    "one-run": Mask((37, 129), 0.3, key=2**64 - 5, draw=2**32 - 1),
    "blocks": Mask((16, 128), 0.3, key=1),
    "window": Mask((74, 387), 0.3, key=9, draw=4).window((5, 200), (37, 129)),
    "window-of-blocks": Mask((74, 512), 0.3, key=9, draw=4).window((5, 128), (37, 256)),
    "window-shared": Mask((7, 6, 5, 387), 0.3, key=9, shared_axes=1).window((1, 0, 2, 200), (3, 2, 3, 99)),
    "far": Mask(2**41, 0.1, key=9).window(2**40 + 5, 1000),
    "far-rows": Mask((2**20, 2**41), 0.1, key=9).window((2**19 + 1, 2**40 + 5), (10, 200)),
    "carry-into-the-second-word": Mask(2**41, 0.1, key=9).window(2**39 - 500, 1000),
    "empty": Mask((3, 0, 2), 0.5, key=1),
    "no-axes": Mask((), 0.5, key=1),
    **{f"rate-{name}": Mask((37, 129), rate, key=2**63 + 7, draw=3) for name, rate in RATES.items()},
    **{mode: Mask((3, 5, 131), 0.3, key=5, draw=1, **of((3, 5, 131))) for mode, of in MODES.items()},
}


def words_of(*numbers: int) -> Words:
    """Numbers of 64 bits as their halves, for one mask."""
    return tuple(np.array([half], np.int64) for number in numbers for half in divmod(number, 1 << 32))


def by(xp: _portable.Arrays, mask: Mask, data: str) -> tuple[Callable[..., Any], Words]:
    """Return a function of x and of words that applies a mask, and the words."""
    shape, strides, start, key, draw, threshold = mask._recipe
    scale = _checks.scale(threshold)

    def run(x: Any, k1: Any, k0: Any, draw: Any, s1: Any, s0: Any, t1: Any, t0: Any) -> Any:
        words_of_mask = ((s1, s0), threshold) if data == "start" else (start, (t1, t0))
        kept = _portable.keep(xp, shape, strides, words_of_mask[0], (k1, k0), draw, words_of_mask[1])
        return _portable.select(xp, x, kept[0], scale)

    return run, (*words_of(key), *words_of(draw)[1:], *words_of(start, threshold))


def in_torch(mask: Mask, x: Array, data: str, compiler: str | None = None) -> Array:
    run, words = by(dropfast.torch._devices.Arrays(torch.device("cpu")), mask, data)
    if compiler:
        torch._dynamo.reset()
        run = torch.compile(run, backend=compiler, fullgraph=True)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # others may have been started where TensorFlow had subnormals flushed, and do it, too
    try:
        y = run(_tensor(x), *map(torch.from_numpy, words))
    finally:
        torch.set_num_threads(threads)
    return y.view(torch.int16).numpy().view(x.dtype) if x.dtype == ml_dtypes.bfloat16 else y.numpy()


def _tensor(x: Array) -> torch.Tensor:
    if x.dtype == ml_dtypes.bfloat16:
        return torch.from_numpy(x.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(x)


def in_tensorflow(mask: Mask, x: Array, data: str, **how: Any) -> Array:
    run, words = by(ArraysOfXLA() if how.get("jit_compile") else Arrays(), mask, data)
    if how:
        run = tf.function(run, autograph=False, **how)
    return np.asarray(run(tf.constant(x), *map(tf.constant, words)))


def in_jax(mask: Mask, x: Array, data: str, jit: bool = True) -> Array:
    run, words = by(dropfast.jax._portable.Arrays(frozenset()), mask, data)
    with jax.enable_x64(x.dtype == np.float64):
        arrays = [jax.numpy.asarray(word.astype(np.uint32)) for word in words]
        return np.asarray((jax.jit(run) if jit else run)(jax.numpy.asarray(x), *arrays))


Way = Callable[[Mask, Array, str], Array]
WAYS: dict[str, Way] = {
    "torch": in_torch,
    "torch-traced": lambda mask, x, data: in_torch(mask, x, data, compiler="aot_eager"),
    "torch-inductor": lambda mask, x, data: in_torch(mask, x, data, compiler="inductor"),
    "tensorflow": in_tensorflow,
    "tensorflow-graph": lambda mask, x, data: in_tensorflow(mask, x, data, jit_compile=False),
    "tensorflow-xla": lambda mask, x, data: in_tensorflow(mask, x, data, jit_compile=True),
    "jax": lambda mask, x, data: in_jax(mask, x, data, jit=False),
    "jax-jit": in_jax,
}


# Compilers take seconds for each of these, or half a minute. What they are given is what runs without them.
COMPILED = {way: ["far-rows", "rate-0.5"] for way in ("torch-traced", "tensorflow-graph", "tensorflow-xla")}
COMPILED["torch-inductor"] = ["far-rows"]
CASES = [(way, mask) for way in WAYS for mask in COMPILED.get(way, MASKS)]


@pytest.mark.parametrize("data", ["start", "threshold"])
@pytest.mark.parametrize(("way", "mask"), CASES)
def test_it_keeps_what_the_kernels_keep(way: str, mask: str, data: str) -> None:
    x = np.ones(MASKS[mask].shape, np.float32)
    assert_same_bits(WAYS[way](MASKS[mask], x, data), MASKS[mask].apply(x))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("way", WAYS)
def test_outputs(way: str, dtype: str) -> None:
    """All bits of them; but on CPUs XLA and TensorFlow may give 0 for the product of a subnormal number."""
    mask = Mask((5, 211), 0.3, key=5)
    x = values(mask.shape, DTYPES[dtype])
    y, want = WAYS[way](mask, x, "start"), mask.apply(x)
    if way.startswith(("tensorflow", "jax")):
        with np.errstate(invalid="ignore"):
            subnormal = (np.abs(x) < ml_dtypes.finfo(x.dtype).tiny) & (x != 0)  # type: ignore[no-untyped-call]
        assert subnormal.sum() > 10
        y = np.where(subnormal & (y == 0), want, y)
    assert_same_bits(y, want)
