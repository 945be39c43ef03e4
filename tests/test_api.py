"""The promises of the public names: what the function, the mask and the layer mean, beyond the bits."""

import copy
import importlib.metadata
import inspect
import itertools
import json
import pickle
import tracemalloc
from typing import Any

import expected
import ml_dtypes
import numpy as np
import pytest
from cases import DTYPES, MODES, RATES, Array, Shape, values
from expected import assert_same_bits
from processes import run_python

import dropfast
from dropfast import Dropout, Mask, _backend, _checks, dropout, show_config, thin

each_dtype = pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
each_rate = pytest.mark.parametrize("rate", RATES.values(), ids=RATES)


# ---- the module ----------------------------------------------------------------------------------


def test_public_names_and_signatures() -> None:
    assert sorted(dropfast.__all__) == ["Dropout", "Mask", "__version__", "dropout", "show_config", "thin"]

    def parameters(function: Any) -> list[tuple[str, Any, bool]]:
        return [(p.name, p.default, p.kind is p.KEYWORD_ONLY) for p in inspect.signature(function).parameters.values()]

    needed = inspect.Parameter.empty
    shared = [("shared_axes", (), True), ("noise_shape", None, True)]
    assert parameters(dropout) == [
        *[("x", needed, False), ("rate", 0.5, False)],
        *shared,
        *[("rng", None, True), ("out", None, True)],
    ]
    assert parameters(Mask) == [
        *[("shape", needed, False), ("rate", 0.5, False)],
        *[("key", np._NoValue, True), ("rng", np._NoValue, True), ("draw", 0, True)],
        *shared,
    ]
    assert parameters(Dropout) == [("rate", 0.5, False), *shared, ("rng", None, True)]
    assert parameters(Mask.compress) == [("self", needed, False), ("x", needed, False), ("out", None, False)]
    assert parameters(Mask.expand) == [
        *[("self", needed, False), ("y", needed, False), ("out", None, False), ("scaled", False, False)]
    ]
    masks = [("rows", None, False), ("cols", None, False)]
    assert sorted(thin.__all__) == ["add", "put", "take"]
    assert parameters(thin.take) == [("w", needed, False), *masks, ("out", None, False)]
    assert parameters(thin.put) == [("g", needed, False), *masks, ("out", None, False)]
    assert parameters(thin.add) == [("w", needed, False), ("g", needed, False), *masks, ("alpha", 1.0, False)]


def test_version_is_that_of_the_installation() -> None:
    assert dropfast.__version__ == importlib.metadata.version("dropfast")


def test_import_takes_numpy_and_nothing_else() -> None:
    code = """
import sys
import numpy.random, numpy.typing  # NumPy imports some of itself only when asked
before = set(sys.modules)
import dropfast
new = {name.partition(".")[0] for name in set(sys.modules) - before}
print(*sorted(new - set(sys.stdlib_module_names)))
"""
    done = run_python(code)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["dropfast"]


def test_using_it_imports_nothing_either() -> None:
    code = """
import sys
import numpy as np
import dropfast
from dropfast import _backend
before = set(sys.modules)
for backend in _backend.available():
    _backend.use(backend)
    for dtype in (np.float16, np.float32, np.float64):
        dropfast.Dropout(0.1, rng=0)(np.ones((300, 500), dtype))
print(*sorted({name.partition(".")[0] for name in set(sys.modules) - before} - set(sys.stdlib_module_names)))
"""
    done = run_python(code)
    assert done.returncode == 0, done.stderr
    assert set(done.stdout.split()) <= {"numpy", "dropfast"}


def test_show_config(backend: str, capsys: pytest.CaptureFixture[str]) -> None:
    config = show_config(mode="dicts")
    name, _, isa = backend.partition(":")
    assert list(config) == ["version", "stream", "backend", "isa", "why", "available", "openmp", "threading", "threads"]
    assert config["version"] == dropfast.__version__
    assert config["stream"] == "v1"
    assert config["backend"] == name
    assert config["isa"] == (isa or None)
    assert config["why"] == "asked for by a call"
    assert config["available"] == list(_backend.available())
    assert isinstance(config["openmp"], bool)
    assert config["threading"] == (None if name == "numpy" else "openmp" if config["openmp"] else "pool")
    assert config["threads"] >= 1
    json.dumps(config)  # plain values, for a bug report

    show_config()
    printed = dict(line.strip().split(": ", 1) for line in capsys.readouterr().out.splitlines())
    assert list(printed) == list(config)
    assert printed["version"] == dropfast.__version__
    assert printed["backend"] == name
    assert printed["isa"] == (isa or "None")
    assert printed["why"] == "asked for by a call"
    assert printed["available"] == ", ".join(_backend.available())


def test_accepted_dtypes_are_those_of_the_table() -> None:
    candidates = {np.dtype(code) for code in np.typecodes["All"]} | {np.dtype(np.float32).newbyteorder()}
    extra = (getattr(ml_dtypes, name) for name in dir(ml_dtypes))
    candidates |= {np.dtype(kind) for kind in extra if isinstance(kind, type) and issubclass(kind, np.generic)}
    assert len(candidates) > 30
    assert {dtype for dtype in candidates if _checks.takes(dtype)} == set(DTYPES.values())


# ---- what a mask does ----------------------------------------------------------------------------


@each_dtype
@each_rate
def test_kept_and_dropped(backend: str, dtype: np.dtype[Any], rate: float) -> None:
    """Kept ones are the scale, dropped ones +0.0, whatever they were."""
    mask = Mask((50, 41), rate, key=3)
    kept = mask.keep()
    compute = np.float64 if dtype == np.float64 else np.float32
    with np.errstate(over="ignore"):
        scale = np.array(compute(mask.scale)).astype(dtype)
    for value in (1.0, -1.0, np.inf, -np.inf, -0.0, np.nan):
        y = mask.apply(np.full((50, 41), value, dtype))
        assert not expected.bits(y[~kept]).any(), f"a dropped {value} is not +0.0"
        if np.isnan(value):
            assert np.isnan(y[kept]).all()
        elif abs(value) == 1:
            assert (y[kept] == np.array(value, dtype) * scale).all()
        else:
            assert (expected.bits(y[kept]) == expected.bits(np.array(value, dtype))).all()


@each_rate
def test_scale_keeps_the_mean_exactly(rate: float) -> None:
    mask = Mask(1, rate, key=0)
    threshold = round(rate * 2**32)
    assert mask.scale == (2**32 / (2**32 - threshold) if threshold < 2**32 else 0.0)


@each_dtype
def test_nothing_is_flushed_to_zero(backend: str, dtype: np.dtype[Any]) -> None:
    least = ml_dtypes.finfo(dtype).smallest_subnormal  # type: ignore[no-untyped-call]
    x = np.full(600_001, least, dtype)
    y = Mask(x.shape, 0.5, key=1).apply(x)
    kept = y != 0
    assert kept.sum() == Mask(x.shape, 0.5, key=1).keep().sum()
    assert (y[kept] == 2 * least).all()
    # Nor has a call changed how this thread computes.
    tiny = np.full(1000, np.finfo(np.float32).smallest_subnormal)
    assert ((tiny * np.float32(1)) == tiny).all()


@pytest.mark.parametrize("mode", MODES)
def test_a_window_is_a_slice_of_the_whole(backend: str, mode: str) -> None:
    shape = (12, 20, 130)
    mask = Mask(shape, 0.3, key=4, **MODES[mode](shape))
    x = values(shape, DTYPES["float32"])
    whole, start, lengths = mask.apply(x), (3, 5, 7), (6, 11, 123)
    cut = tuple(slice(a, a + n) for a, n in zip(start, lengths, strict=True))
    window = mask.window(start, lengths)
    assert window.shape == lengths
    assert_same_bits(window.apply(np.ascontiguousarray(x[cut])), whole[cut])
    assert_same_bits(window.apply(x[cut]), whole[cut])
    inner = window.window((1, 2, 3), (4, 5, 100))
    assert_same_bits(inner.apply(x[cut][1:5, 2:7, 3:103]), whole[cut][1:5, 2:7, 3:103])
    assert inner == mask.window((4, 7, 10), (4, 5, 100))
    assert mask.window((0, 0, 0), shape) == mask


@pytest.mark.parametrize("mode", MODES)
def test_windows_tile_the_whole(backend: str, mode: str) -> None:
    shape = (10, 6, 90)
    mask = Mask(shape, 0.5, key=4, **MODES[mode](shape))
    x, out = values(shape, DTYPES["float64"]), np.empty(shape)
    for i in range(0, 10, 4):
        for k in range(0, 90, 37):
            cut = (slice(i, i + 4), slice(None), slice(k, k + 37))
            mask.window((i, 0, k), x[cut].shape).apply(x[cut], out=out[cut])
    assert_same_bits(out, mask.apply(x))


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("shape", [(5, 7, 33), (2, 0, 9), (4, 3, 1, 1), (3, 40, 700)], ids=str)
def test_keep_and_packed_agree(backend: str, mode: str, shape: Shape) -> None:
    mask = Mask(shape, 0.4, key=8, draw=2, **MODES[mode](shape))
    kept, packed = mask.keep(), mask.packed()
    assert kept.dtype == np.bool_
    assert kept.shape == mask.noise_shape
    assert packed.dtype == np.uint8
    assert packed.shape == ((kept.size + 7) // 8,)
    assert packed.tobytes() == np.packbits(kept, bitorder="little").tobytes()
    assert set(kept.view(np.uint8).ravel().tolist()) <= {0, 1}
    assert np.array_equal(mask.apply(np.ones(shape)) != 0, np.broadcast_to(kept, shape))


def test_packed_of_every_length_and_start(backend: str) -> None:
    mask = Mask(1200, 0.5, key=8)
    kept = mask.keep()
    for n in (*range(150), 255, 256, 257, 511, 1000):
        for start in (0, 1, 7, 8, 100, 128):
            packed = mask.window(start, n).packed()
            assert packed.tobytes() == np.packbits(kept[start : start + n], bitorder="little").tobytes()


def test_packed_of_large_masks(backend: str) -> None:
    assert np.array_equal(Mask(200_003, 0.1, key=8).keep(), expected.keep((200_003,), 0.1, 8))
    mask = Mask((3000, 1001), 0.1, key=8).window((7, 500), (2900, 90))
    assert np.array_equal(mask.keep(), expected.keep((3000, 1001), 0.1, 8, start=(7, 500), shape=(2900, 90)))


@pytest.mark.parametrize(
    ("shared_axes", "noise_shape"),
    [
        *[((), (4, 5, 6)), ((), (None, None, None)), (0, (1, 5, 6)), (-1, (4, None, 1)), ((0, 2), (1, None, 1))],
        *[((1, 0), (1, 1, 6)), ([0, 1, 2], [1, 1, 1]), (np.int64(1), (None, np.int32(1), 6))],
    ],
    ids=str,
)
def test_noise_shape_is_another_spelling(backend: str, shared_axes: Any, noise_shape: Any) -> None:
    a = Mask((4, 5, 6), 0.5, key=1, shared_axes=shared_axes)
    b = Mask((4, 5, 6), 0.5, key=1, noise_shape=noise_shape)
    assert a == b
    assert a.noise_shape == b.noise_shape == tuple(n or full for n, full in zip(noise_shape, (4, 5, 6), strict=True))
    x = values((4, 5, 6), DTYPES["float32"])
    assert_same_bits(a.apply(x), b.apply(x))
    assert_same_bits(dropout(x, 0.5, shared_axes=shared_axes, rng=1), dropout(x, 0.5, noise_shape=noise_shape, rng=1))
    assert_same_bits(Dropout(0.5, shared_axes=shared_axes, rng=1)(x), Dropout(0.5, noise_shape=noise_shape, rng=1)(x))


def test_shared_axes_as_an_array(backend: str) -> None:
    want = Mask((4, 5, 6), 0.5, key=1, shared_axes=(0, 2))
    assert Mask((4, 5, 6), 0.5, key=1, shared_axes=np.array([0, 2])) == want
    assert Mask((4, 5, 6), 0.5, key=1, shared_axes=[]) == Mask((4, 5, 6), 0.5, key=1)
    x = np.ones((4, 5, 6))
    assert_same_bits(dropout(x, shared_axes=np.array([0, 2]), rng=2), dropout(x, shared_axes=(0, 2), rng=2))
    assert Dropout(shared_axes=np.array([0, 2]), rng=2)(x).shape == x.shape


def test_shared_axes_have_one_bit_in_common(backend: str) -> None:
    y = Mask((40, 50), 0.5, key=1, shared_axes=0).apply(np.ones((40, 50)))
    assert (y == y[0]).all()
    assert 5 < (y[0] == 0).sum() < 45
    y = Mask((40, 50), 0.5, key=1, shared_axes=1).apply(np.ones((40, 50)))
    assert (y == y[:, :1]).all()
    y = Mask((40, 50), 0.5, key=1).apply(np.ones((40, 50)))
    assert not (y == y[0]).all()


def test_a_shared_mask_is_that_of_its_noise_shape(backend: str) -> None:
    """An axis that is shared counts for nothing: only indices in the noise_shape do."""
    assert np.array_equal(Mask((9, 50), 0.5, key=1, shared_axes=0).keep()[0], Mask((50,), 0.5, key=1).keep())
    assert np.array_equal(Mask((9, 50, 4), 0.5, key=1, shared_axes=1).keep()[:, 0], Mask((9, 4), 0.5, key=1).keep())


def test_masks_of_one_key_and_draw_are_nested(backend: str) -> None:
    rates = [0.0, 2.0**-32, 2.0**-10, 0.1, 0.25, 0.3, 0.5, 0.75, 0.9, 1 - 2.0**-10, 1 - 2.0**-32, 1.0]
    kept = [Mask(20_000, rate, key=5, draw=6).keep() for rate in rates]
    assert kept[0].all()
    assert not kept[-1].any()
    for less, more in itertools.pairwise(kept):
        assert not (more & ~less).any()


def test_other_keys_and_draws_give_other_masks(backend: str) -> None:
    masks = {Mask(256, 0.5, key=key, draw=draw).packed().tobytes() for key in range(20) for draw in range(20)}
    masks |= {Mask(256, 0.5, key=1 << bit).packed().tobytes() for bit in range(5, 64)}
    masks |= {Mask(256, 0.5, key=0, draw=1 << bit).packed().tobytes() for bit in range(5, 32)}
    assert len(masks) == 400 + 59 + 27


def test_out(backend: str) -> None:
    x = values((30, 41), DTYPES["float32"])
    mask = Mask(x.shape, 0.5, key=1)
    want, out = mask.apply(x), np.empty_like(x)
    assert mask.apply(x, out) is out  # also by position
    assert_same_bits(out, want)
    assert_same_bits(dropout(x, 0.5, rng=9, out=out), dropout(x, 0.5, rng=9))
    y = x.copy()
    assert dropout(y, 0.5, rng=9, out=y) is y
    assert_same_bits(y, out)


def test_the_new_array_is_plain_and_in_c_order(backend: str) -> None:
    x = np.ones((30, 40), np.float32)
    for view in (x, x.T, x[::-1], x[:, ::3], np.broadcast_to(x[0], (9, 40))):
        y = Mask(view.shape, key=0).apply(view)
        assert y.flags.c_contiguous
        assert y.flags.owndata
        assert y.flags.writeable


def test_backward_is_the_same_call(backend: str) -> None:
    x, dy = np.random.default_rng(0).standard_normal((2, 60, 70))
    mask = Mask(x.shape, 0.3, key=12)
    y, dx = mask.apply(x), mask.apply(dy)
    assert ((y == 0) == (dx == 0)).all()
    assert_same_bits(dx, np.where(mask.keep(), dy * mask.scale, 0.0))


# ---- a mask as a value ---------------------------------------------------------------------------

MASKS = {
    "plain": Mask((4, 5), 0.5, key=1),
    "rate": Mask((4, 5), 0.1, key=1),
    "key": Mask((4, 5), 0.5, key=2**64 - 1),
    "draw": Mask((4, 5), 0.5, key=1, draw=2**32 - 1),
    "shape": Mask((5, 4), 0.5, key=1),
    "shared": Mask((4, 5), 0.5, key=1, shared_axes=0),
    "shared-other": Mask((4, 5), 0.5, key=1, shared_axes=1),
    "shared-both": Mask((4, 5), 0.5, key=1, shared_axes=(0, 1)),
    "window": Mask((400, 50), 0.5, key=1).window((2, 3), (4, 5)),
    "window-elsewhere": Mask((400, 50), 0.5, key=1).window((2, 4), (4, 5)),
    "window-of-another": Mask((500, 50), 0.5, key=1).window((2, 3), (4, 5)),
    "window-shared": Mask((400, 50), 0.5, key=1, shared_axes=0).window((2, 3), (4, 5)),
    "0-d": Mask((), 0.5, key=1),
    "empty": Mask((0, 3), 0.5, key=1),
    "far": Mask((2**31, 2**32), 1 / 3, key=1).window((2**31 - 1, 2**32 - 9), (1, 9)),
}


@pytest.mark.parametrize("name", MASKS)
def test_masks_compare_and_hash_by_value(name: str) -> None:
    mask = MASKS[name]
    for other_name, other in MASKS.items():
        assert (mask == other) is (name == other_name)
        assert (mask != other) is (name != other_name)
    for again in (pickle.loads(pickle.dumps(mask)), copy.copy(mask), copy.deepcopy(mask), eval(repr(mask))):
        assert again == mask
        assert hash(again) == hash(mask)
        assert repr(again) == repr(mask)
        assert again.packed().tobytes() == mask.packed().tobytes()
    assert mask != repr(mask)
    assert len({mask, eval(repr(mask))}) == 1


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_masks_pickle_with_every_protocol(protocol: int) -> None:
    for mask in MASKS.values():
        data = pickle.dumps(mask, protocol)
        assert pickle.loads(data) == mask
        assert len(data) < 400  # a recipe, not an array


def test_attributes_of_a_mask() -> None:
    mask = Mask([4, np.int64(5), 6], np.float64(0.25), key=np.uint64(2**64 - 1), draw=np.int8(3), shared_axes=[-1, 0])
    assert mask.shape == (4, 5, 6)
    assert mask.rate == 0.25
    assert mask.key == 2**64 - 1
    assert mask.draw == 3
    assert mask.shared_axes == (0, 2)
    assert mask.noise_shape == (1, 5, 1)
    assert mask.scale == 4 / 3
    for value, kind in [(mask.rate, float), (mask.key, int), (mask.draw, int), (mask.scale, float)]:
        assert type(value) is kind
    assert {type(n) for n in (*mask.shape, *mask.shared_axes, *mask.noise_shape)} == {int}
    single: Any = np.float32(0.25)
    assert Mask(7, single, key=0) == Mask(7, 0.25, key=0)
    assert Mask(7, key=0).shape == (7,)
    assert Mask(7, key=0).rate == 0.5
    assert Mask((), key=0).shape == ()
    assert mask.window((1, 2, 3), (2, 2, 2)).noise_shape == (1, 2, 1)


@pytest.mark.parametrize("name", ["shape", "rate", "key", "draw", "shared_axes", "noise_shape", "scale", "other"])
def test_masks_are_immutable(name: str) -> None:
    mask = Mask((4, 5), key=1)
    with pytest.raises(AttributeError):
        setattr(mask, name, 1)
    assert mask == Mask((4, 5), key=1)


def test_repr_of_a_mask() -> None:
    assert repr(Mask((4, 5), 0.1, key=1)) == "Mask((4, 5), 0.1, key=1, draw=0)"
    window = Mask((4, 5), 0.1, key=1, draw=2, shared_axes=-1).window((1, 0), (2, 5))
    assert repr(window) == "Mask((4, 5), 0.1, key=1, draw=2, shared_axes=(1,)).window(start=(1, 0), shape=(2, 5))"


# ---- memory --------------------------------------------------------------------------------------

SMALL = 4 << 20  # bytes: what a call may need besides its output


@pytest.mark.parametrize("mode", ["per-sample", "shared-first", "shared-last"])
@pytest.mark.parametrize("rate", [0.5, 0.1], ids=lambda rate: f"rate={rate}")
def test_no_array_of_the_masks_size(backend: str, rate: float, mode: str) -> None:
    x: Array = np.ones((4096, 4096), np.float32)  # 64 MiB; its mask has 2 MiB, its bools 16 MiB
    mask, out = Mask(x.shape, rate, key=1, **MODES[mode](x.shape)), np.empty_like(x)
    tracemalloc.start()
    try:
        mask.apply(x, out=out)
        with_out = tracemalloc.get_traced_memory()[1]
        tracemalloc.reset_peak()
        y = mask.apply(x)
        with_new = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert with_out < SMALL
    assert y.nbytes <= with_new < y.nbytes + SMALL


def test_no_hidden_memory(backend: str) -> None:
    """The same by what the operating system says, for memory that Python knows nothing of."""
    resource = pytest.importorskip("resource", reason="this system does not say how much memory a process takes")
    assert resource
    code = """
import resource, sys
import numpy as np
import dropfast
dropfast._backend.use(sys.argv[1])
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // (1024 if sys.platform == "darwin" else 1)
mask = lambda n: dropfast.Mask((n, 1024), 0.1, key=1)
mask(1024).apply(np.ones((1024, 1024), np.float32))  # threads and whatever else is needed once
x, out = np.ones((16384, 1024), np.float32), np.ones((16384, 1024), np.float32)
before = peak()
mask(16384).apply(x, out=out)
print(peak() - before)
"""
    done = run_python(code, backend)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) * 1024 < SMALL
