"""The promise that a GPU has the masks and the bits of the CPU, in JAX: `make gpu`, where there is a GPU."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import pytest
from cases import DTYPES, MODES, RATES, values
from expected import assert_same_bits

from dropfast.jax import dropout

SHAPE = (9, 5, 70)
KEY = jax.random.key(123)
DTYPES_OF_JAX = [name for name in DTYPES if name != "float64"]  # which it has by a setting of the whole process


def ways(**settings: Any) -> dict[str, Callable[[Any], Any]]:
    def call(x: Any) -> Any:
        return dropout(KEY, x, **settings)

    return {
        "jit": jax.jit(call),
        "gradient": jax.jit(jax.grad(lambda x: (call(x).astype(jnp.float32) * x.astype(jnp.float32)).sum())),
        "vmap": jax.jit(jax.vmap(call)),
    }


def on(platform: str, call: Callable[[Any], Any], x: Any) -> Any:
    (device, *_) = jax.devices(platform)
    return call(jax.device_put(x, device))


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("dtype", DTYPES_OF_JAX)
def test_mode(dtype: str, mode: str) -> None:
    call = ways(rate=0.3, **MODES[mode](SHAPE))["jit"]
    x = values(SHAPE, DTYPES[dtype])
    there = on("gpu", call, x)
    assert {device.platform for device in there.devices()} == {"gpu"}
    assert_same_bits(jax.device_get(there), jax.device_get(on("cpu", call, x)))


@pytest.mark.parametrize("way", ["jit", "gradient", "vmap"])
@pytest.mark.parametrize("rate", RATES)
def test_way(rate: str, way: str) -> None:
    call = ways(rate=RATES[rate])[way]
    x = jax.random.normal(KEY, (37, 129, 8))
    assert_same_bits(jax.device_get(on("gpu", call, x)), jax.device_get(on("cpu", call, x)))
