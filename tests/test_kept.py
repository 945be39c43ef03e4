"""The mask beside the result, a byte an element: the same for every backend, layout, dtype and number of threads."""

from typing import Any

import expected
import numpy as np
import pytest
from cases import DTYPES, LAYOUTS, MODES, RATES, SIZES, Shape, lay_out, values
from expected import assert_same_bits

import dropfast
from dropfast import _backend

KEY, DRAW = 0x0123456789ABCDEF, 7

each_dtype = pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)


def assert_right(
    shape: Shape, rate: float, dtype: np.dtype[Any], x_layout: str = "C", out_layout: str = "C", **sharing: Any
) -> None:
    recipe = dropfast.Mask(shape, rate, key=KEY, draw=DRAW, **sharing)._recipe
    keep = expected.keep(shape, rate, KEY, DRAW, **sharing)
    x, _ = lay_out(x_layout, shape, dtype)
    x[...] = values(shape, dtype)
    out, _ = lay_out(out_layout, shape, dtype)
    kept, memory = lay_out(out_layout, shape, np.dtype(bool))
    should, should_memory = lay_out(out_layout, shape, np.dtype(bool))
    assert _backend.apply(x, out, recipe, kept) is out
    should[...] = keep
    assert memory.tobytes() == should_memory.tobytes()  # ones and zeros, and nothing around them
    assert_same_bits(out, expected.output(values(shape, dtype), keep, rate))


@pytest.mark.parametrize("n", [*SIZES, 1 << 20], ids=lambda n: f"n{n}")
@pytest.mark.parametrize("rate", [RATES["0.1"], RATES["0.5"]], ids=["rate=0.1", "rate=0.5"])
@each_dtype
def test_sizes(backend: str, dtype: np.dtype[Any], rate: float, n: int) -> None:
    assert_right((n,), rate, dtype)


@pytest.mark.parametrize("rate", RATES.values(), ids=RATES)
def test_rates(backend: str, rate: float) -> None:
    assert_right((5003,), rate, DTYPES["float32"])


@pytest.mark.parametrize("out_layout", ["C", "F", "transposed", "reversed"])
@pytest.mark.parametrize("x_layout", LAYOUTS)
@each_dtype
def test_layouts(backend: str, dtype: np.dtype[Any], x_layout: str, out_layout: str) -> None:
    """Those of out are those where bytes can lie as its elements do."""
    for shape in ((6, 33, 20), (40, 300), (2100, 140), (700,), (), (0, 5)):
        assert_right(shape, 0.25, dtype, x_layout, out_layout)


@pytest.mark.parametrize("layout", ["C", "F"])
@pytest.mark.parametrize("mode", MODES)
def test_modes(backend: str, mode: str, layout: str) -> None:
    for shape in ((12, 9, 150), (3, 70, 5, 6)):
        assert_right(shape, 0.25, DTYPES["float32"], layout, layout, **MODES[mode](shape))


def test_the_compiled_backend_refuses_memory_that_does_not_lie_beside_out() -> None:
    x, out, kept = np.ones((4, 6), np.float32), np.zeros((4, 6), np.float32), np.zeros((4, 6), np.bool_)
    recipe = dropfast.Mask(x.shape, 0.5, key=1)._recipe
    read_only = kept.copy()
    read_only.flags.writeable = False
    beside = r"^apply: kept must be a writable array of booleans that lies as out does$"
    for isa in _backend.available()[:-1]:
        with expected.using(isa):
            for wrong in (
                kept[:3],
                kept.view(np.uint8),
                kept.reshape(6, 4).T,
                np.zeros((4, 12), np.bool_)[:, ::2],
                read_only,
            ):
                with pytest.raises(ValueError, match=beside):
                    _backend.apply(x, out, recipe, wrong)
    assert not out.any()
