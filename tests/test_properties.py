"""Properties that hold for any shape, layout, window and rate: examples by hypothesis, the same in each run.

Each example is computed on every backend of the machine and compared with one expected value.
"""

import itertools
import math
from typing import Any, NamedTuple

import expected
import numpy as np
from cases import DTYPES, RATES, Array, Shape, values
from expected import assert_same_bits, using
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import basic_indices

from dropfast import Mask, _backend, dropout

BACKENDS = _backend.available()


def examples(n: int) -> settings:
    """Ask for n examples where a profile of conftest.py asks for 100, and in proportion."""
    return settings(max_examples=n * settings().max_examples // 100)


dtypes = st.sampled_from(list(DTYPES.values()))
keys = st.integers(0, 2**64 - 1)
draws = st.integers(0, 2**32 - 1)
# Any rate, any multiple of 2^-32 near 0 and 1, and few planes.
rates = st.one_of(
    st.sampled_from(list(RATES.values())),
    st.floats(0, 1),
    st.integers(0, 64).map(lambda n: n / 64),
    st.integers(0, 300).map(lambda n: n * 2.0**-32),
    st.integers(0, 300).map(lambda n: 1 - n * 2.0**-32),
)
lengths = st.one_of(st.integers(0, 6), st.sampled_from([1, 1, 31, 64, 65, 127, 128, 129, 300]))


class Part(NamedTuple):
    """A window of a mask: the whole, which axes it shares, and where the window lies."""

    whole: Shape
    shared_axes: tuple[int, ...]
    start: Shape
    shape: Shape

    def mask(self, rate: float, key: int, draw: int) -> Mask:
        return Mask(self.whole, rate, key=key, draw=draw, shared_axes=self.shared_axes).window(self.start, self.shape)

    def kept(self, rate: float, key: int, draw: int) -> Any:
        return expected.keep(
            self.whole, rate, key, draw, shared_axes=self.shared_axes, start=self.start, shape=self.shape
        )


@st.composite
def parts(draw: st.DrawFn) -> Part:
    shape = tuple(draw(st.lists(lengths, max_size=5)))
    while math.prod(max(n, 1) for n in shape) > 60_000:  # also beside an empty axis, for `places` has room for them
        shape = shape[:-1]
    shared = tuple(axis for axis in range(len(shape)) if draw(st.booleans()))
    around = st.one_of(st.just(0), st.integers(0, 200), st.integers(0, 2**40))
    start, whole, elements = [], [], 1
    for axis, n in enumerate(shape):
        before, behind = draw(around), draw(st.integers(0, 200))
        full = before + n + behind
        if axis not in shared:
            rest = math.prod(max(m, 1) for m in shape[axis + 1 :])
            if elements * full * rest > 2**62:  # large enough
                before, full = 0, n
            elements *= max(full, 1)
        start.append(before)
        whole.append(full)
    return Part(tuple(whole), shared, tuple(start), shape)


@st.composite
def places(draw: st.DrawFn, shape: Shape, dtype: np.dtype[Any]) -> tuple[Array, Array]:
    """An array of any strides that do not overlap, aligned or not, and the memory around it."""
    order = draw(st.permutations(range(len(shape))))
    strides, low, step = [0] * len(shape), 0, dtype.itemsize
    for axis in order:
        # A gap of some elements, or of some bytes, behind each row.
        step += draw(st.sampled_from([0, 0, 0, 1, 2, 3, 7])) * draw(st.sampled_from([1, dtype.itemsize]))
        strides[axis] = draw(st.sampled_from([1, 1, -1])) * step
        low += min(0, strides[axis]) * max(shape[axis] - 1, 0)
        step *= max(shape[axis], 1)
    offset = draw(st.integers(0, 9))
    memory = np.full(step + offset + 16, 0xA5, np.uint8)
    return np.ndarray(shape, dtype, memory.data, offset - low if 0 not in shape else 0, tuple(strides)), memory


@examples(250)
@given(parts(), dtypes, rates, keys, draws, st.data())
def test_any_mask_on_any_layout(
    part: Part, dtype: np.dtype[Any], rate: float, key: int, draw: int, data: st.DataObject
) -> None:
    content = values(part.shape, dtype)
    want = expected.output(content, part.kept(rate, key, draw), rate)
    x, x_memory = data.draw(places(part.shape, dtype))
    out, out_memory = data.draw(places(part.shape, dtype))
    x[...] = content
    x_before, out_before = x_memory.copy(), out_memory.copy()
    mask = part.mask(rate, key, draw)
    for backend in BACKENDS:
        with using(backend):
            out_memory[:] = out_before
            assert_same_bits(mask.apply(x, out=out), want)
            assert x_memory.tobytes() == x_before.tobytes()
            out[...] = np.frombuffer(b"\xa5" * dtype.itemsize, dtype)[0]  # only what is around it is left to compare
            assert out_memory.tobytes() == out_before.tobytes()

            assert_same_bits(mask.apply(x), want)

            assert_same_bits(mask.apply(x, out=x), want)
            x_memory[:] = x_before


@examples(150)
@given(parts(), rates, keys, draws)
def test_any_mask_as_bits(part: Part, rate: float, key: int, draw: int) -> None:
    kept = part.kept(rate, key, draw)
    mask = part.mask(rate, key, draw)
    for backend in BACKENDS:
        with using(backend):
            assert np.array_equal(mask.keep(), kept)
            assert mask.packed().tobytes() == np.packbits(kept, bitorder="little").tobytes()


@examples(100)
@given(st.data(), dtypes, rates, keys)
def test_slices_of_x(data: st.DataObject, dtype: np.dtype[Any], rate: float, key: int) -> None:
    """Whatever NumPy's slices give: the result is that of the same values in a row."""
    shape = tuple(data.draw(st.lists(st.integers(1, 40), min_size=1, max_size=4)))
    view = values(shape, dtype)[data.draw(basic_indices(shape, allow_newaxis=True, allow_ellipsis=True))]
    x = np.asarray(view)
    if type(view) is not np.ndarray:  # a single element
        x = x.reshape(())
    axes = tuple(axis for axis in range(x.ndim) if data.draw(st.booleans()))
    mask = Mask(x.shape, rate, key=key, shared_axes=axes)
    want = expected.output(np.array(x, order="C"), expected.keep(x.shape, rate, key, shared_axes=axes), rate)
    for backend in BACKENDS:
        with using(backend):
            assert_same_bits(mask.apply(x), want)
            assert_same_bits(mask.apply(x, out=np.empty(x.shape, dtype)), want)


@examples(100)
@given(st.integers(1, 3000), st.integers(1, 40), rates, keys, st.lists(st.integers(0, 3000), max_size=6), st.booleans())
def test_windows_tile_the_whole(rows: int, columns: int, rate: float, key: int, cuts: list[int], shared: bool) -> None:
    x = values((rows, columns), DTYPES["float32"])
    mask = Mask(x.shape, rate, key=key, shared_axes=1 if shared else ())
    want = expected.output(x, expected.keep(x.shape, rate, key, shared_axes=mask.shared_axes), rate)
    edges = sorted({0, rows, *(cut % rows for cut in cuts)})
    for backend in BACKENDS:
        with using(backend):
            out = np.empty_like(x)
            for a, b in itertools.pairwise(edges):
                mask.window((a, 0), (b - a, columns)).apply(x[a:b], out=out[a:b])
            assert_same_bits(out, want)


@examples(100)
@given(parts(), st.data(), rates, keys)
def test_windows_of_windows(part: Part, data: st.DataObject, rate: float, key: int) -> None:
    mask = part.mask(rate, key, 0)
    inner = [sorted((data.draw(st.integers(0, n)), data.draw(st.integers(0, n)))) for n in part.shape]
    start, shape = tuple(a for a, _ in inner), tuple(b - a for a, b in inner)
    twice = mask.window(start, shape)
    whole = Mask(part.whole, rate, key=key, shared_axes=part.shared_axes)
    once = whole.window(tuple(a + b for a, b in zip(part.start, start, strict=True)), shape)
    assert twice == once
    assert hash(twice) == hash(once)
    assert eval(repr(twice)) == once
    assert np.array_equal(twice.keep(), once.keep())


@examples(60)
@given(rates, rates, keys, draws, st.integers(1, 2000))
def test_lower_rates_keep_more(a: float, b: float, key: int, draw: int, n: int) -> None:
    low, high = sorted((a, b))
    for backend in BACKENDS:
        with using(backend):
            less, more = (Mask(n, rate, key=key, draw=draw).keep() for rate in (low, high))
            assert not (more & ~less).any()


@examples(60)
@given(dtypes, rates, keys, st.integers(0, 1500), st.integers(-20, 20))
def test_what_holds_exactly_in_floats(dtype: np.dtype[Any], rate: float, key: int, n: int, power: int) -> None:
    """Scaling by powers of two and changes of sign pass through; zero stays zero; float32 is float16 widened."""
    x = (np.arange(n, dtype=np.float32) % 15 - 7).astype(dtype)
    mask = Mask(n, rate, key=key)
    for backend in BACKENDS:
        with using(backend):
            y = mask.apply(x)
            if dtype not in (DTYPES["float16"],) and mask.scale < 2**20:
                assert np.array_equal(mask.apply((x * 2.0**power).astype(dtype)), (y * 2.0**power).astype(dtype))
            negative = mask.apply(-x)
            assert np.array_equal(negative, np.where(mask.keep(), -y, y))
            assert not mask.apply(np.zeros(n, dtype)).any()
            with np.errstate(over="ignore"):
                if dtype.itemsize == 2:
                    assert_same_bits(y, mask.apply(x.astype(np.float32)).astype(dtype))


@examples(40)
@given(rates, st.integers(0, 2**64), st.integers(1, 300))
def test_a_seed_gives_one_result(rate: float, seed: int, n: int) -> None:
    x = values((n, 3), DTYPES["float32"])
    results = []
    for backend in BACKENDS:
        with using(backend):
            results.append(dropout(x, rate, shared_axes=0, rng=seed))
    for result in results[1:]:
        assert_same_bits(result, results[0])
