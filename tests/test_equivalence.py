"""The promise "the same bits": on every backend, for every dtype, layout, size, mode, rate and window.

Each result is compared with one expected value, which knows nothing of backends, layouts or threads
(tests/expected.py). Not every combination is run: each dimension is crossed with those that it can interact with.
"""

from pathlib import Path
from typing import Any

import expected
import numpy as np
import pytest
import reference
from cases import ADDRESSES, DTYPES, LAYOUTS, MODES, RATES, SIZES, Array, Shape, at_address, lay_out, values
from expected import assert_same_bits

import dropfast

KEY, DRAW = 0x0123456789ABCDEF, 7

each_dtype = pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)


def rates(*names: str) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("rate", [RATES[name] for name in names], ids=[f"rate={name}" for name in names])


@pytest.mark.parametrize("n", SIZES, ids=lambda n: f"n{n}")
@rates("0.1", "0.5")
@each_dtype
def test_sizes(backend: str, dtype: np.dtype[Any], rate: float, n: int) -> None:
    x = values((n,), dtype)
    got = dropfast.Mask(n, rate, key=KEY, draw=DRAW).apply(x)
    assert_same_bits(got, expected.output(x, expected.keep((n,), rate, KEY, DRAW), rate))


@pytest.mark.parametrize("n", [1, 63, 129, 2049, 16385, 270001], ids=lambda n: f"n{n}")
@pytest.mark.parametrize("first", [1, 31, 64, 77, 127, 128, 16383], ids=lambda first: f"first{first}")
@each_dtype
def test_first_element(backend: str, dtype: np.dtype[Any], first: int, n: int) -> None:
    whole = (first + n + 3,)
    x = values((n,), dtype)
    for rate in (0.5, 0.1):
        kept = expected.keep(whole, rate, KEY, DRAW, start=(first,), shape=(n,))
        got = dropfast.Mask(whole, rate, key=KEY, draw=DRAW).window(first, n).apply(x)
        assert_same_bits(got, expected.output(x, kept, rate))


@rates(*RATES)
@each_dtype
def test_rates(backend: str, dtype: np.dtype[Any], rate: float) -> None:
    for shape, mode in [((5003,), "per-sample"), ((40, 131), "shared-first"), ((300, 70), "shared-last")]:
        x, options = values(shape, dtype), MODES[mode](shape)
        got = dropfast.Mask(shape, rate, key=KEY, draw=DRAW, **options).apply(x)
        assert_same_bits(got, expected.output(x, expected.keep(shape, rate, KEY, DRAW, **options), rate))


@pytest.mark.parametrize("rate", [1 / 3, 0.2, 0.1, 0.875], ids=lambda rate: f"rate={rate:.3g}")
@pytest.mark.parametrize("name", ["float16", "bfloat16"])
def test_every_16_bit_value(backend: str, name: str, rate: float) -> None:
    """All of them, eight times each; scales of 1.5, 1.25 and 8 make ties, which have to go to the even side."""
    x = np.tile(np.arange(2**16, dtype=np.uint16), 8).view(DTYPES[name])
    got = dropfast.Mask(x.shape, rate, key=KEY).apply(x)
    assert_same_bits(got, expected.output(x, expected.keep(x.shape, rate, KEY), rate))


@each_dtype
def test_the_largest_scale(backend: str, dtype: np.dtype[Any]) -> None:
    """At rate 1 - 2^-32 next to nothing is kept, but this element is: with all values, and a scale of 2^32."""
    x = values((1, 2**16), dtype) if dtype.itemsize > 2 else np.arange(2**16, dtype=np.uint16).view(dtype)[None]
    mask = dropfast.Mask((2**40, 2**16), RATES["1-2^-32"], key=0, shared_axes=1).window((343460240, 0), x.shape)
    assert mask.keep().all()
    assert_same_bits(mask.apply(x), expected.output(x, np.ones(x.shape, np.bool_), RATES["1-2^-32"]))


@pytest.mark.parametrize("i", reference.AT_THRESHOLD, ids=lambda i: f"i{i}")
@each_dtype
def test_elements_right_at_a_threshold(backend: str, dtype: np.dtype[Any], i: int) -> None:
    x = values((301,), dtype)
    for rate in reference.AT_THRESHOLD[i]:
        kept = expected.keep((2**40,), rate, 0, 0, start=(i - 150,), shape=(301,))
        got = dropfast.Mask(2**40, rate, key=0).window(i - 150, 301).apply(x)
        assert_same_bits(got, expected.output(x, kept, rate))


# Small and odd, one around each change of path in the engine (a repeat of 64, rows of 2,048, patterns of 4,096 bits,
# batches of 16,384 and 65,536), and one for each mode that is divided among threads.
SHAPES: dict[str, tuple[Shape, ...]] = {
    "per-sample": ((37, 65), (3, 5, 7, 11), (601, 517), (1, 400, 1, 700), (2, 1, 140001)),
    "shared-first": (
        *((33, 7), (129, 128), (100001, 3), (300, 1025), (80, 2047), (140, 2048), (9, 16385), (3, 100003)),
        *((4095, 1), (5, 3, 9, 11)),
    ),
    "shared-last": (
        *((65, 33), (50, 2), (257, 63), (257, 64), (257, 65), (40, 4095), (40, 4097), (131073, 2), (30000, 9)),
        *((9, 30001), (4, 5, 6, 70)),
    ),
    "shared-middle": ((5, 7, 33), (3, 65, 129), (30, 90, 101), (5, 300, 200), (300, 3, 300), (3, 4, 5, 6, 7)),
    "shared-ends": ((6, 33, 9), (5, 130, 70), (60, 50, 100), (5, 500, 130)),
    "shared-alternate": ((6, 5, 4, 3, 2), (10, 40, 9, 80), (6, 33, 5), (21, 11, 10, 120)),
    "spatial": ((3, 5, 4, 4), (2, 16, 8, 9), (13, 64, 17, 19), (2, 3, 4, 5, 6), (3, 7, 300), (33, 129, 2, 31)),
    "shared-all": ((17,), (5, 129), (600, 500), (1, 1)),
    "noise-shape": ((4, 6, 10), (3, 65, 130), (128, 3, 700), (9, 129)),
}


@pytest.mark.parametrize(
    ("mode", "shape"),
    [
        pytest.param(mode, shape, id=f"{mode}-{'x'.join(map(str, shape))}")
        for mode, shapes in SHAPES.items()
        for shape in shapes
    ],
)
@rates("0.1", "0.5")
@each_dtype
def test_modes(backend: str, dtype: np.dtype[Any], rate: float, mode: str, shape: Shape) -> None:
    x, options = values(shape, dtype), MODES[mode](shape)
    mask = dropfast.Mask(shape, rate, key=KEY, draw=DRAW, **options)
    kept = expected.keep(shape, rate, KEY, DRAW, **options)
    want = expected.output(x, kept, rate)
    assert_same_bits(mask.apply(x), want)
    assert mask.noise_shape == kept.shape
    assert np.array_equal(mask.keep(), kept)
    y = x.copy()
    assert mask.apply(y, out=y) is y
    assert_same_bits(y, want)


# ---- layouts -------------------------------------------------------------------------------------

LAYOUT_WORK = [
    ((6, 33, 20), "per-sample"),
    ((6, 33, 20), "shared-first"),
    ((3, 4, 5, 6), "spatial"),
    ((), "per-sample"),
]
LAYOUT_WORK += [
    ((0, 5), "per-sample"),
    ((700,), "per-sample"),
    ((5, 7, 70), "shared-last"),
    ((40, 300), "per-sample"),
    ((12, 9, 150), "shared-middle"),
    ((6, 1, 33), "shared-middle"),
    ((3, 1100), "per-sample"),
    ((20, 9, 33), "per-sample"),
    ((9, 20, 5, 7), "shared-first"),
]


def assert_right_in_layouts(dtype: np.dtype[Any], x_layout: str, out_layout: str, shape: Shape, mode: str) -> None:
    options, data = MODES[mode](shape), values(shape, dtype)
    want = expected.output(data, expected.keep(shape, 0.25, KEY, DRAW, **options), 0.25)
    mask = dropfast.Mask(shape, 0.25, key=KEY, draw=DRAW, **options)

    x, x_memory = lay_out(x_layout, shape, dtype)
    x[...] = data
    before = x_memory.copy()
    out, memory = (x, x_memory) if out_layout == "in-place" else lay_out(out_layout, shape, dtype)
    assert mask.apply(x, out=out) is out

    # Not only out: the gaps in it and the bytes around it.
    should, should_memory = lay_out(x_layout if out_layout == "in-place" else out_layout, shape, dtype)
    if out is x:
        should_memory[...] = before
    should[...] = want
    assert_same_bits(out, want)
    out[...] = should[...] = 0  # any NaN is right, so only the rest is left to compare
    assert memory.tobytes() == should_memory.tobytes(), "bytes outside out were changed"
    if out is not x:
        assert x_memory.tobytes() == before.tobytes(), "x was changed"


@pytest.mark.parametrize("out_layout", ["in-place", *LAYOUTS], ids=lambda name: f"out={name}")
@pytest.mark.parametrize("x_layout", LAYOUTS, ids=lambda name: f"x={name}")
@each_dtype
def test_layouts(backend: str, dtype: np.dtype[Any], x_layout: str, out_layout: str) -> None:
    for shape, mode in LAYOUT_WORK:
        assert_right_in_layouts(dtype, x_layout, out_layout, shape, mode)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(
    ("shape", "mode"),
    [
        ((350, 801), "per-sample"),
        ((400, 701), "shared-first"),
        ((10, 17, 40, 41), "spatial"),
        ((2100, 140), "per-sample"),  # more rows than a tile of transposed bits has
        ((21, 13, 30, 40), "shared-alternate"),
    ],
    ids=["per-sample", "shared-first", "spatial", "tall", "shared-alternate"],
)
def test_layouts_on_several_threads(backend: str, shape: Shape, mode: str, layout: str) -> None:
    for x_layout, out_layout in ((layout, "C"), ("C", layout), (layout, "in-place")):
        assert_right_in_layouts(DTYPES["float32"], x_layout, out_layout, shape, mode)


# ---- addresses -----------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["per-sample", "shared-first"])
@pytest.mark.parametrize("rate", [0.5, 0.1], ids=lambda rate: f"rate={rate}")
@each_dtype
def test_addresses(backend: str, dtype: np.dtype[Any], rate: float, mode: str) -> None:
    """Rows of odd length, long enough to be drawn and selected in one, from anywhere to anywhere and in place."""
    shape, start = (5, 4099), (0, 77)
    whole = (5, 5000)
    options = MODES[mode](shape)
    kept = expected.keep(whole, rate, KEY, start=start, shape=shape, **options)
    mask = dropfast.Mask(whole, rate, key=KEY, **options).window(start, shape)
    data = values(shape, dtype)
    want = expected.output(data, kept, rate)
    for x_offset in ADDRESSES:
        for out_offset in ADDRESSES:
            x, out = (at_address(offset, shape, dtype) for offset in (x_offset, out_offset))
            x[...] = data
            assert_same_bits(mask.apply(x, out=out), want)
        assert_same_bits(mask.apply(x, out=x), want)


def x_broadcast(shape: Shape, dtype: np.dtype[Any], tmp_path: Path) -> Array:
    return np.broadcast_to(values(shape[1:], dtype), shape)


def x_broadcast_inside(shape: Shape, dtype: np.dtype[Any], tmp_path: Path) -> Array:
    return np.broadcast_to(values((*shape[:-1], 1), dtype), shape)


def x_scalar_broadcast(shape: Shape, dtype: np.dtype[Any], tmp_path: Path) -> Array:
    return np.broadcast_to(np.array(-1.5, dtype), shape)


def x_read_only(shape: Shape, dtype: np.dtype[Any], tmp_path: Path) -> Array:
    x = values(shape, dtype)
    x.flags.writeable = False
    return x


def x_memmap(shape: Shape, dtype: np.dtype[Any], tmp_path: Path) -> Array:
    values(shape, dtype).tofile(tmp_path / "x")
    x: Array = np.memmap(tmp_path / "x", dtype, mode="r", shape=shape)
    return x


def x_frombuffer(shape: Shape, dtype: np.dtype[Any], tmp_path: Path) -> Array:
    return np.frombuffer(b"\0" + values(shape, dtype).tobytes(), dtype, offset=1).reshape(shape)


def x_overlapping_windows(shape: Shape, dtype: np.dtype[Any], tmp_path: Path) -> Array:
    """As for a convolution: x may overlap itself as much as it likes."""
    return np.lib.stride_tricks.sliding_window_view(values((shape[0] + shape[1] - 1,), dtype), shape[1])


X_KINDS = [
    x_broadcast,
    x_broadcast_inside,
    x_scalar_broadcast,
    x_read_only,
    x_memmap,
    x_frombuffer,
    x_overlapping_windows,
]


@pytest.mark.parametrize("kind", X_KINDS, ids=lambda kind: kind.__name__)
@each_dtype
def test_x_that_cannot_be_written(backend: str, dtype: np.dtype[Any], kind: Any, tmp_path: Path) -> None:
    for shape, mode in [((33, 70), "per-sample"), ((33, 70), "shared-first"), ((33, 70), "shared-last")]:
        x, options = kind(shape, dtype, tmp_path), MODES[mode](shape)
        assert not x.flags.writeable
        want = expected.output(np.array(x), expected.keep(shape, 0.1, KEY, **options), 0.1)
        got = dropfast.Mask(shape, 0.1, key=KEY, **options).apply(x)
        assert type(got) is np.ndarray
        assert got.flags.writeable
        assert_same_bits(got, want)


def test_memmap_as_out(backend: str, tmp_path: Path) -> None:
    x = values((300, 7), DTYPES["float32"])
    out = np.memmap(tmp_path / "out", np.float32, mode="w+", shape=x.shape)
    assert dropfast.Mask(x.shape, 0.5, key=KEY).apply(x, out=out) is out
    out.flush()
    want = expected.output(x, expected.keep(x.shape, 0.5, KEY), 0.5)
    assert_same_bits(np.fromfile(tmp_path / "out", np.float32).reshape(x.shape), want)


def test_out_in_the_same_memory_without_a_common_element(backend: str) -> None:
    memory = np.concatenate([values((500,), DTYPES["float64"]), np.zeros(500)])
    want = expected.output(memory[:500].copy(), expected.keep((500,), 0.5, KEY), 0.5)
    dropfast.Mask(500, 0.5, key=KEY).apply(memory[:500], out=memory[500:])
    assert_same_bits(memory[500:], want)
    memory = np.stack([values((500,), DTYPES["float64"]), np.zeros(500)], axis=1)
    dropfast.Mask(500, 0.5, key=KEY).apply(memory[:, 0], out=memory[:, 1])
    assert_same_bits(memory[:, 1], want)


def test_64_axes(backend: str) -> None:
    shape = (2, 1, 3) + (1,) * 58 + (2, 5, 3)
    x = values(shape, DTYPES["float32"])
    for axes in ((), 0, (2, -1), tuple(range(64))):
        want = expected.output(x, expected.keep(shape, 0.5, KEY, shared_axes=axes), 0.5)
        assert_same_bits(dropfast.Mask(shape, 0.5, key=KEY, shared_axes=axes).apply(x), want)


# ---- windows -------------------------------------------------------------------------------------

# (whole mask, start, shape, shared axes): inside blocks, 2-D pieces of a wide array, single columns, far away.
WINDOWS: dict[str, tuple[Shape, Shape, Shape, tuple[int, ...]]] = {
    "inside-a-block": ((1000,), (130,), (50,), ()),
    "rows": ((64, 1000), (3, 0), (20, 1000), ()),
    "piece-of-a-wide-array": ((64, 100_003), (5, 99_000), (50, 700), ()),
    "narrow-piece": ((4000, 1001), (7, 13), (3000, 3), ()),
    "column": ((5000, 129), (1, 128), (4999, 1), ()),
    "column-of-128s": ((40_000, 128), (0, 5), (40_000, 1), ()),
    "column-on-threads": ((2**19, 17), (9, 5), (2**18 + 129, 1), ()),
    "piece-on-threads": ((2000, 100_003), (5, 99_000), (700, 501), ()),
    "one-element": ((1000, 1000), (999, 999), (1, 1), ()),
    "empty": ((1000, 1000), (1000, 0), (0, 1000), ()),
    "cube": ((50, 60, 70), (11, 13, 17), (20, 30, 40), ()),
    "rows-of-a-shared-mask": ((1000, 300), (500, 0), (64, 300), (0,)),
    "columns-of-a-shared-mask": ((1000, 3000), (500, 777), (64, 300), (0,)),
    "part-of-shared-last": ((1000, 300), (123, 7), (200, 65), (1,)),
    "part-of-shared-middle": ((100, 30, 500), (9, 5, 33), (20, 11, 300), (1,)),
    "part-of-spatial": ((64, 512, 9, 9), (3, 100, 2, 2), (30, 200, 5, 7), (2, 3)),
    "2^31": ((2**20, 2**20), (2**11, 0), (3, 300), ()),
    "across-2^31": ((2**40,), (2**31 - 400,), (801,), ()),
    "across-2^32": ((2**40,), (2**32 - 400,), (801,), ()),
    "across-2^39": ((2**62,), (2**39 - 400,), (801,), ()),  # block 2^32, the counter's second word
    "across-2^39-on-threads": ((2**62,), (2**39 - 140_000,), (280_001,), ()),
    "across-3*2^39-in-rows": ((2**41, 1021), (3 * 2**39 // 1021 - 8, 5), (17, 1000), ()),
    "2^40+5": ((2**62,), (2**40 + 5,), (801,), ()),
    "far-column": ((2**40, 2**22 + 1), (2**39, 2**21 + 3), (300, 2), ()),
    "far-shared": ((1000, 2**50, 3), (10, 2**49 + 1, 0), (5, 130, 3), (0,)),
    "far-spatial": ((2**30, 2**30, 8, 8), (2**29 + 1, 2**29, 0, 0), (9, 40, 8, 8), (2, 3)),
    "up-to-2^63": ((2**63 - 1,), (2**63 - 802,), (801,), ()),
    "up-to-2^63-in-rows": ((2**31, 2**32), (2**31 - 5, 2**32 - 300), (5, 300), ()),
}


@pytest.mark.parametrize("name", WINDOWS)
@rates("0.1", "0.5")
def test_windows(backend: str, rate: float, name: str) -> None:
    whole, start, shape, axes = WINDOWS[name]
    window = dropfast.Mask(whole, rate, key=KEY, draw=DRAW, shared_axes=axes).window(start, shape)
    kept = expected.keep(whole, rate, KEY, DRAW, shared_axes=axes, start=start, shape=shape)
    x = values(shape, DTYPES["float32"])
    assert_same_bits(window.apply(x), expected.output(x, kept, rate))
    assert np.array_equal(window.keep(), kept)


# ---- larger than the caches ----------------------------------------------------------------------

# 16 MiB and more of output goes past the caches, where there are stores for it: (dtype, shape, mode, offset in bytes).
LARGE: dict[str, tuple[str, Shape, str, int]] = {
    "float16-rows": ("float16", (2500, 6800), "shared-first", 0),
    "bfloat16-spatial": ("bfloat16", (60, 3000, 10, 10), "spatial", 2),
    "float32-per-sample": ("float32", (2**23 + 12_345,), "per-sample", 0),
    "float32-misaligned-rows": ("float32", (2901, 2903), "shared-first", 4),
    "float32-unaligned": ("float32", (1000, 8500), "shared-first", 1),
    "float64-per-sample": ("float64", (1025, 4099), "per-sample", 8),
    "float64-long-repeats": ("float64", (2001, 2203), "shared-last", 8),
}


@pytest.mark.parametrize("case", LARGE.values(), ids=LARGE)
def test_larger_than_the_caches(backend: str, case: tuple[str, Shape, str, int]) -> None:
    name, shape, mode, offset = case
    dtype = DTYPES[name]
    x, options = values(shape, dtype), MODES[mode](shape)
    kept = expected.keep(shape, 0.25, KEY, **options)
    memory = np.full(x.nbytes + 128, 0xA5, np.uint8)
    offset += -memory.ctypes.data % 64
    out = np.ndarray(shape, dtype, memory.data, offset)
    dropfast.Mask(shape, 0.25, key=KEY, **options).apply(x, out=out)
    assert_same_bits(out, expected.output(x, kept, 0.25))
    assert (memory[:offset] == 0xA5).all()
    assert (memory[offset + x.nbytes :] == 0xA5).all()


# Where what lies side by side in out is further apart in x than caches hold, elements are moved first: (dtype, shape,
# the order of its axes in the memory of x and of out).
FAR: dict[str, tuple[str, Shape, tuple[int, ...], tuple[int, ...]]] = {
    "fortran-from-rows": ("float32", (401, 703), (0, 1), (1, 0)),
    "rows-from-fortran": ("bfloat16", (701, 803), (1, 0), (0, 1)),
    "samples-last": ("float64", (9, 20, 31, 33), (0, 2, 3, 1), (3, 2, 1, 0)),
    "samples-first": ("float16", (14, 50, 23, 35), (3, 2, 1, 0), (0, 2, 1, 3)),
}


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("case", FAR.values(), ids=FAR)
def test_far_apart(backend: str, mode: str, case: tuple[str, Shape, tuple[int, ...], tuple[int, ...]]) -> None:
    name, shape, x_order, out_order = case
    options, x = MODES[mode](shape), values(shape, DTYPES[name])
    memory = np.full(x.size + 64, 7, x.dtype)
    out = np.flip(memory[32:-32].reshape([shape[d] for d in out_order]).transpose(np.argsort(out_order)))
    x_there = np.ascontiguousarray(x.transpose(x_order)).transpose(np.argsort(x_order))
    dropfast.Mask(shape, 0.3, key=KEY, **options).apply(x_there, out=out)
    assert_same_bits(out, expected.output(x, expected.keep(shape, 0.3, KEY, **options), 0.3))
    assert (memory[:32] == 7).all()
    assert (memory[-32:] == 7).all()
