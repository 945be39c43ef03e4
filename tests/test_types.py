"""The promise about types: a small user's program that mypy and pyright check (`make lint`) and that does as it says.

Each line that both must refuse carries their comments: one that is not needed is an error to both.
"""

from typing import Any, assert_type

import ml_dtypes
import numpy as np
import numpy.typing as npt
import pytest

import dropfast
from dropfast import Dropout, Mask, dropout, thin

Half = npt.NDArray[np.float16]
Single = npt.NDArray[np.float32]
Double = npt.NDArray[np.float64]

HALF: Half = np.ones((2, 3), np.float16)
SINGLE: Single = np.ones((2, 3), np.float32)
DOUBLE: Double = np.ones((2, 3))
INTEGERS: npt.NDArray[np.int64] = np.ones((2, 3), np.int64)
BOOLEANS: npt.NDArray[np.bool_] = np.ones((2, 3), np.bool_)


def test_what_goes_in_comes_out() -> None:
    assert_type(dropout(HALF), Half)
    assert_type(dropout(SINGLE, 0.5, shared_axes=0, rng=1), Single)
    assert_type(dropout(DOUBLE, noise_shape=(1, None), out=DOUBLE.copy()), Double)
    mask, layer = Mask((2, 3), key=1), Dropout(0.5)
    assert_type(mask.apply(HALF), Half)
    assert_type(mask.apply(SINGLE, out=SINGLE.copy()), Single)
    assert_type(layer(DOUBLE), Double)
    assert_type(layer(SINGLE, out=SINGLE.copy()), Single)
    assert_type(layer.backward(SINGLE), Single)
    assert_type(layer.train().eval(), Dropout)
    assert_type(layer.mask, Mask | None)
    assert_type(mask.window((0, 0), (1, 3)).keep(), npt.NDArray[np.bool_])
    assert_type(dropfast.show_config("dicts"), dict[str, Any])


def test_thinned_arrays_too() -> None:
    units = Mask((2, 3), 0.5, key=1, shared_axes=0)
    assert_type(units.kept(), npt.NDArray[np.intp])
    assert_type(units.compress(HALF), Half)
    assert_type(units.expand(units.compress(SINGLE), out=SINGLE.copy(), scaled=True), Single)
    part = thin.take(DOUBLE, cols=units)
    assert_type(part, Double)
    assert_type(thin.put(part, cols=units), Double)
    assert_type(thin.add(DOUBLE.copy(), part, cols=units, alpha=np.float32(-0.5)), Double)
    with pytest.raises(TypeError):
        units.compress(INTEGERS)  # type: ignore[type-var]  # pyright: ignore[reportArgumentType]
    with pytest.raises(TypeError):
        thin.take(INTEGERS, cols=units)  # type: ignore[type-var]  # pyright: ignore[reportArgumentType]
    with pytest.raises(TypeError):
        thin.take(SINGLE, [0, 2])  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    with pytest.raises(TypeError):
        units.expand(SINGLE[:, : units.kept().size], scaled="no")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]


def test_bfloat16_is_any() -> None:
    x: npt.NDArray[Any] = np.ones((2, 3), ml_dtypes.bfloat16)
    y = dropout(x)
    assert_type(y, npt.NDArray[Any])
    assert y.dtype == x.dtype


def an_array_of_any_float(x: npt.NDArray[np.floating[Any]]) -> npt.NDArray[np.floating[Any]]:
    return dropout(x)


def test_arrays_that_both_refuse() -> None:
    mask, layer = Mask((2, 3), key=1), Dropout()
    layer(SINGLE)
    with pytest.raises(TypeError):
        dropout(INTEGERS)  # type: ignore[type-var]  # pyright: ignore[reportArgumentType]
    with pytest.raises(TypeError):
        dropout(BOOLEANS)  # type: ignore[type-var]  # pyright: ignore[reportArgumentType]
    with pytest.raises(TypeError):
        mask.apply(INTEGERS)  # type: ignore[type-var]  # pyright: ignore[reportArgumentType]
    with pytest.raises(TypeError):
        layer(INTEGERS)  # type: ignore[type-var]  # pyright: ignore[reportArgumentType]
    with pytest.raises(TypeError):
        layer.backward(INTEGERS)  # type: ignore[type-var]  # pyright: ignore[reportArgumentType]
    with pytest.raises(TypeError):
        dropout([1.0, 2.0])  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize("kind", [float, np.float16, np.float32, np.float64, np.longdouble])
def test_rates(kind: type[float] | type[np.floating[Any]]) -> None:
    rate = kind(0.5)
    assert np.array_equal(dropout(SINGLE, rate, rng=1), Mask((2, 3), rate, rng=1).apply(SINGLE))
    layer = Dropout(rate)
    layer.rate = rate
    assert_type(layer.rate, float)
    dropout(SINGLE, 1)
    dropout(SINGLE, np.int32(0))


def test_rates_that_both_refuse() -> None:
    with pytest.raises(TypeError):
        dropout(SINGLE, "0.5")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    with pytest.raises(TypeError):
        Dropout(None)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    with pytest.raises(TypeError):
        Dropout().rate = "0.5"  # type: ignore[assignment]  # pyright: ignore[reportAttributeAccessIssue]


def test_rngs() -> None:
    bits = np.random.PCG64(1)
    for rng in (1, [1, 2], np.int64(1), np.random.SeedSequence(1), bits, np.random.Generator(bits), None):
        dropout(SINGLE, rng=rng)
        Dropout(rng=rng)
        Mask((2, 3), rng=rng)
    state: np.random.RandomState = np.random.RandomState(1)
    assert Dropout(rng=state).key != Mask((2, 3), rng=state).key


def test_rngs_that_both_refuse() -> None:
    with pytest.raises(TypeError):
        dropout(SINGLE, rng=1.5)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    with pytest.raises(TypeError):
        Mask((2, 3))  # type: ignore[call-overload]  # pyright: ignore[reportCallIssue]
    with pytest.raises(TypeError):
        Mask((2, 3), key=1, rng=1)  # type: ignore[call-overload]  # pyright: ignore[reportCallIssue]


def test_attributes_that_both_refuse() -> None:
    layer = Dropout()
    with pytest.raises(AttributeError):
        layer.is_training = False  # type: ignore[attr-defined]  # pyright: ignore[reportAttributeAccessIssue]
    with pytest.raises(TypeError):
        layer.training = "no"  # type: ignore[assignment]  # pyright: ignore[reportAttributeAccessIssue]
    with pytest.raises(AttributeError):
        layer.key = 1  # type: ignore[misc]  # pyright: ignore[reportAttributeAccessIssue]
