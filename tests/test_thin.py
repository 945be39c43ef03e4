"""The promise about arrays without what is dropped: they are what NumPy's indexing gives, bit for bit.

On every backend, for every dtype, rate, size, layout and window. What is kept comes from tests/expected.py, which knows
nothing of dropfast.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import expected
import numpy as np
import pytest
from cases import DTYPES, LAYOUTS, Array, Shape, lay_out, values
from expected import assert_same_bits, bits
from hypothesis import given
from hypothesis import strategies as st

from dropfast import Mask, thin

KEY, DRAW = 0x0123456789ABCDEF, 7
RATES = {"0": 0.0, "0.2": 0.2, "0.5": 0.5, "0.75": 0.75, "0.875": 0.875, "1": 1.0}

each_dtype = pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
each_rate = pytest.mark.parametrize("rate", RATES.values(), ids=[f"rate={name}" for name in RATES])


def mask_along(axis: int, shape: Shape, rate: float, draw: int = DRAW) -> Mask:
    """A mask that varies along one axis."""
    return Mask(shape, rate, key=KEY, draw=draw, shared_axes=[d for d in range(len(shape)) if d != axis])


def kept_of(n: int, rate: float, draw: int = DRAW) -> Array:
    return np.flatnonzero(expected.keep((n,), rate, KEY, draw))


def assert_identical(got: Array, want: Array) -> None:
    """The same bits, those of a signalling NaN too."""
    assert got.dtype == want.dtype
    assert got.shape == want.shape
    assert np.array_equal(bits(got), bits(want))


def assert_rows_are_aligned(array: Array, axis: int) -> None:
    """In C order, with gaps only between rows: what lies inside `axis`, the last that is thinned, or inside axis 1."""
    inside = min(max(axis, 1), array.ndim - 1)
    assert array.ctypes.data % 64 == 0
    if array.size:
        row = array[(0,) * inside]
        assert row.flags.c_contiguous
        if inside:
            assert array.strides[inside - 1] == -(-row.nbytes // 64) * 64
            assert all(
                a == b * n for a, b, n in zip(array.strides, array.strides[1:inside], array.shape[1:], strict=False)
            )


def moves_of_a_mask(shape: Shape, axis: int, rate: float, dtype: np.dtype[Any]) -> None:
    """kept, compress and expand, into new arrays."""
    mask, kept, x = mask_along(axis, shape, rate), kept_of(shape[axis], rate), values(shape, dtype)
    index = (slice(None),) * axis + (kept,)
    assert mask.kept().dtype == np.intp
    assert np.array_equal(mask.kept(), kept)
    compact = mask.compress(x)
    assert_same_bits(compact, expected.output(x, np.ones((1,) * len(shape), np.bool_), rate)[index])
    assert_identical(compact, np.compress(mask.keep().ravel(), mask.apply(x), axis))
    assert_rows_are_aligned(compact, axis)

    assert_identical(mask.expand(compact), mask.apply(x))
    raw = values(compact.shape, dtype)
    whole = np.zeros(shape, dtype)
    whole[index] = raw
    assert_identical(mask.expand(raw), whole)
    assert_rows_are_aligned(mask.expand(raw), axis)
    assert_identical(mask.expand(raw, scaled=True), mask.apply(whole))


def ix(kept: list[Array | None], shape: Shape) -> Any:
    return np.ix_(*(np.arange(n) if along is None else along for along, n in zip(kept, shape, strict=False)))


def moves_of_weights(shape: Shape, rows: float | None, cols: float | None, dtype: np.dtype[Any]) -> None:
    """take, put and add, by rates for the axes."""
    row_mask = None if rows is None else mask_along(1, (9, shape[0]), rows, draw=0)
    col_mask = None if cols is None else mask_along(1, (9, shape[1]), cols, draw=1)
    kept_rows = None if rows is None else kept_of(shape[0], rows, draw=0)
    index = ix([kept_rows, None if cols is None else kept_of(shape[1], cols, draw=1)], shape)
    w, last = values(shape, dtype), 1 if cols is not None else 0
    part = thin.take(w, row_mask, col_mask)
    assert_identical(part, w[index])
    assert_rows_are_aligned(part, last)

    g = values(part.shape, dtype)[..., ::-1].copy()
    whole = np.zeros(shape, dtype)
    whole[index] = g
    assert_identical(thin.put(g, row_mask, col_mask), whole)
    assert_rows_are_aligned(thin.put(g, row_mask, col_mask), last)

    for alpha in (1.0, -0.01):
        sum_, got = w.copy(), w.copy()
        with np.errstate(all="ignore"):
            sum_[index] += dtype.type(alpha) * g
        assert thin.add(got, g, row_mask, col_mask, alpha) is got
        assert_same_bits(got[index], sum_[index])
        got[index] = w[index]
        assert_identical(got, w)  # all others are as they were


@each_dtype
def test_sizes_of_masks(backend: str, dtype: np.dtype[Any]) -> None:
    for n in range(130):
        moves_of_a_mask((2, n), 1, 0.5, dtype)
    for n in (0, 1, 2, 33, 64, 129):
        moves_of_a_mask((n,), 0, 0.5, dtype)
        moves_of_a_mask((n, 3), 0, 0.5, dtype)
        moves_of_a_mask((2, n, 3), 1, 0.5, dtype)


@each_dtype
def test_sizes_of_weights(backend: str, dtype: np.dtype[Any]) -> None:
    for n in (*range(0, 130, 9), 63, 64, 127, 128, 129):
        moves_of_weights((7, n), 0.5, 0.5, dtype)
        moves_of_weights((n, 7), 0.5, 0.5, dtype)
        moves_of_weights((5, n), None, 0.5, dtype)
        moves_of_weights((n, 3), 0.5, None, dtype)
        moves_of_weights((n,), 0.5, None, dtype)


@each_rate
@each_dtype
def test_rates_of_thinned_arrays(backend: str, dtype: np.dtype[Any], rate: float) -> None:
    for n in (1, 64, 100, 129):
        moves_of_a_mask((2, n), 1, rate, dtype)
        moves_of_a_mask((n, 3), 0, rate, dtype)
        moves_of_weights((5, n), rate, rate, dtype)


# Of kernels of convolutions and of channels: short and long runs that stay whole inside the axis that is thinned; rows
# that are shorter than a word of bits; more than one slab of words.
SHAPES: list[tuple[Shape, int]] = [
    *(
        ((2, 40, 3, 3), 1),
        ((3, 70, 8, 8), 1),
        ((3, 17, 16, 16), 1),
        ((70, 3, 5), 0),
        ((4, 5, 70), 2),
        ((2, 3, 4, 5), 2),
    ),
    *(((300, 3), 1), ((1, 1, 9), 2), ((1, 300), 1), ((300, 1), 0), ((5000,), 0), ((3, 5000), 1), ((5000, 2), 0)),
]


@pytest.mark.parametrize(("shape", "axis"), SHAPES, ids=lambda value: str(value).replace(" ", ""))
@each_dtype
def test_shapes_of_masks(backend: str, dtype: np.dtype[Any], shape: Shape, axis: int) -> None:
    for rate in (0.0, 0.2, 0.5, 1.0):
        moves_of_a_mask(shape, axis, rate, dtype)


@pytest.mark.parametrize("shape", [(40, 30, 3, 3), (6, 70, 65), (33, 9, 2), (3, 2000), (1, 200), (200, 1)], ids=str)
@each_dtype
def test_shapes_of_weights(backend: str, dtype: np.dtype[Any], shape: Shape) -> None:
    for rows, cols in [
        (0.5, 0.2),
        (0.2, None),
        (None, 0.5),
        (0.0, 0.5),
        (0.5, 0.0),
        (0.0, 0.0),
        (1.0, 0.5),
        (0.5, 1.0),
    ]:
        moves_of_weights(shape, rows, cols, dtype)


@pytest.mark.parametrize("name", ["float16", "bfloat16"])
def test_every_16_bit_value(backend: str, name: str) -> None:
    """Rates whose scales of 1.5, 1.25 and 8 make ties; sums of all with a neighbour."""
    w = np.tile(np.arange(2**16, dtype=np.uint16), 3).view(DTYPES[name])
    for rate in (1 / 3, 0.2, 0.875):
        mask = Mask(w.shape, rate, key=KEY)
        assert_identical(mask.compress(w), mask.apply(w)[mask.keep()])
    g = np.roll(mask.compress(w), 1)
    with np.errstate(all="ignore"):
        want = w[mask.keep()] + DTYPES[name].type(-0.7) * g
    assert_same_bits(thin.add(w, g, mask, alpha=-0.7)[mask.keep()], want)


# ---- layouts and windows -------------------------------------------------------------------------


def laid_out(layout: str, like: Array) -> Array:
    array, _ = lay_out(layout, like.shape, like.dtype)
    array[...] = like
    return array


@pytest.mark.parametrize("out_layout", LAYOUTS)
@pytest.mark.parametrize("x_layout", LAYOUTS)
def test_layouts(backend: str, x_layout: str, out_layout: str) -> None:
    """And nothing is written around what is written."""

    def written(function: Callable[[Array], Array], want: Array, before: Array | None = None) -> None:
        out, memory = lay_out(out_layout, want.shape, want.dtype)
        should, should_memory = lay_out(out_layout, want.shape, want.dtype)
        if before is not None:
            out[...] = before
        should[...] = want
        assert function(out) is out
        assert_same_bits(out, want)
        out[...] = want  # for another NaN is none of this test's business
        assert memory.tobytes() == should_memory.tobytes()

    for dtype in (DTYPES["float32"], DTYPES["bfloat16"], DTYPES["float64"]):
        for shape, axis in [((6, 33, 20), 1), ((6, 33, 20), 2), ((3, 9, 150), 0), ((7, 600), 1), ((600, 7), 0)]:
            mask, x = mask_along(axis, shape, 0.4), values(shape, dtype)
            source, compact = laid_out(x_layout, x), mask.compress(x)
            written(partial(mask.compress, source), compact)
            y = laid_out(x_layout, compact)
            written(partial(mask.expand, y), mask.apply(x))
            rows, cols = mask_along(0, shape[:1], 0.4), mask_along(0, shape[1:2], 0.3)
            part = x[ix([rows.kept(), cols.kept()], shape)]
            written(partial(thin.take, source, rows, cols), part)
            g, whole = laid_out(x_layout, part), np.zeros(shape, dtype)
            whole[ix([rows.kept(), cols.kept()], shape)] = part
            written(partial(thin.put, g, rows, cols), whole)
            total = thin.add(x.copy(), part, rows, cols, alpha=0.5)
            written(partial(thin.add, g=g, rows=rows, cols=cols, alpha=0.5), total, x)


def test_neighbours_of_one_array_that_are_far_apart_in_the_other(backend: str) -> None:
    shape = (150, 300)
    mask, x = mask_along(1, shape, 0.4), values(shape, DTYPES["float32"])
    dropped = mask.apply(x)
    compact = np.compress(mask.keep().ravel(), dropped, 1)
    assert_same_bits(mask.compress(x, out=np.empty(compact.shape, x.dtype, "F")), compact)
    assert_same_bits(mask.expand(compact, out=np.empty(shape, x.dtype, "F")), dropped)


def test_windows(backend: str) -> None:
    """Indices count from the window's start; what the windows give, one behind the other, is what the whole gives."""
    whole, x = mask_along(1, (6, 1000), 0.5), values((6, 1000), DTYPES["float32"])
    parts = [whole.window((2, a), (4, b - a)) for a, b in [(0, 1), (1, 130), (130, 130), (130, 700), (700, 1000)]]
    starts = (0, 1, 130, 130, 700)
    assert np.array_equal(np.concatenate([p.kept() + a for p, a in zip(parts, starts, strict=True)]), whole.kept())
    pieces = [p.compress(x[2:6, a : a + p.shape[1]]) for p, a in zip(parts, starts, strict=True)]
    assert_identical(np.concatenate(pieces, axis=1), whole.compress(x)[2:6])
    for part, piece, a in zip(parts, pieces, starts, strict=True):
        assert_identical(part.expand(piece), part.apply(x[2:6, a : a + part.shape[1]]))


def test_axes_of_length_1_do_not_count(backend: str) -> None:
    """A batch of one, or one row of a mask that is not shared."""
    row = Mask((4, 6), 0.5, key=KEY).window((2, 0), (1, 6))
    assert np.array_equal(row.kept(), np.flatnonzero(row.keep()))
    assert row.compress(np.ones((1, 6))).shape == (1, row.kept().size)
    assert Mask((1, 0), 0.5, key=1).kept().size == 0
    assert Mask((0, 5), 0.0, key=1, shared_axes=0).kept().tolist() == [0, 1, 2, 3, 4]
    assert Mask((1, 1), 0.0, key=1, shared_axes=0).compress(np.ones((1, 1))).shape == (1, 1)


# ---- any ------------------------------------------------------------------------------------------

sizes = st.integers(0, 129)
rates = st.sampled_from([0.0, 0.1, 0.5, 0.75, 0.875, 1.0])
dtypes = st.sampled_from(list(DTYPES.values()))


@given(st.lists(st.integers(0, 9), min_size=0, max_size=3), sizes, st.integers(0, 3), rates, dtypes)
def test_any_mask(backend: str, others: list[int], n: int, axis: int, rate: float, dtype: np.dtype[Any]) -> None:
    axis = min(axis, len(others))
    moves_of_a_mask((*others[:axis], n, *others[axis:]), axis, rate, dtype)


@given(sizes, sizes, st.none() | rates, rates, st.lists(st.integers(1, 5), max_size=2), dtypes, st.booleans())
def test_any_weights(
    backend: str,
    n: int,
    m: int,
    rows: float | None,
    cols: float | None,
    more: list[int],
    dtype: np.dtype[Any],
    exchange: bool,
) -> None:
    moves_of_weights((n, m, *more), *((cols, rows) if exchange else (rows, cols)), dtype)
