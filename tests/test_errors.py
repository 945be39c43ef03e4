"""The promise about bad input: the kind of error, all of its words, the same on every backend, and nothing written."""

import copy
import math
import re
from collections.abc import Callable
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from cases import DTYPES, SENTINEL, Array
from hypothesis import given, settings
from hypothesis import strategies as st

from dropfast import Dropout, Mask, _backend, _checks, dropout, show_config

SHAPE = (4, 5)
X = np.ones(SHAPE, np.float32)

Call = Callable[[], Any]


def exactly(message: str) -> str:
    return f"^{re.escape(message)}$"


def sentinel(shape: tuple[int, ...], dtype: Any = np.float32) -> Array:
    dtype = np.dtype(dtype)
    memory: Array = np.full(math.prod(shape) * dtype.itemsize, SENTINEL, np.uint8)
    view: Array = memory.view(dtype)
    return view.reshape(shape)


# ---- the numbers of a mask -----------------------------------------------------------------------

RATES: list[tuple[Any, type[Exception], str]] = [
    *[(bad, ValueError, f"rate must be in [0, 1], got {bad}") for bad in (-0.1, 1.5, -5e-324, 1 + 2.0**-52)],
    *[(bad, ValueError, f"rate must be in [0, 1], got {bad}") for bad in (float("nan"), float("inf"), -float("inf"))],
    (2, ValueError, "rate must be in [0, 1], got 2"),
    (-1, ValueError, "rate must be in [0, 1], got -1"),
    (10**400, ValueError, f"rate must be in [0, 1], got {10**400}"),  # more than a float can be
    (np.float32(1.5), ValueError, "rate must be in [0, 1], got 1.5"),
    (np.float64(1.5), ValueError, "rate must be in [0, 1], got 1.5"),
    *[
        (bad, TypeError, f"rate must be a real number in [0, 1], got {type(bad).__name__}")
        for bad in ("0.5", None, True, False, 0.5j, [0.5], (0.5,), np.array(0.5), np.array([0.5]), np.True_)
    ],
]


@pytest.mark.parametrize(("rate", "kind", "message"), RATES, ids=[f"{type(r[0]).__qualname__}-{r[0]!r}" for r in RATES])
@pytest.mark.parametrize("function", ["dropout", "Mask", "Dropout"])
def test_rate(backend: str, function: str, rate: Any, kind: type[Exception], message: str) -> None:
    out = sentinel(SHAPE)
    calls: dict[str, Call] = {
        "dropout": lambda: dropout(X, rate, rng=0, out=out),
        "Mask": lambda: Mask(SHAPE, rate, key=0),
        "Dropout": lambda: Dropout(rate, rng=0),
    }
    with pytest.raises(kind, match=exactly(message)) as caught:
        calls[function]()
    assert caught.type is kind
    assert out.tobytes() == sentinel(SHAPE).tobytes()


@pytest.mark.parametrize(("name", "bits"), [("key", 64), ("draw", 32)])
@pytest.mark.parametrize(
    "bad", [-1, "top", 2**200, -(2**63), 0.0, "1", None, [1], np.float64(1), np.array([1, 2])], ids=repr
)
def test_key_and_draw(name: str, bits: int, bad: Any) -> None:
    bad = 1 << bits if isinstance(bad, str) and bad == "top" else bad
    arguments = {"key": 0, name: bad}
    if isinstance(bad, int):
        kind, message = ValueError, f"{name} must be in [0, 2**{bits}), got {bad}"
    else:
        kind, message = TypeError, f"{name} must be an integer, got {type(bad).__name__}"  # type: ignore[assignment]
    with pytest.raises(kind, match=exactly(message)):
        Mask(SHAPE, 0.5, **arguments)


def test_just_one_of_key_and_rng() -> None:
    """None is an rng, the system's entropy, and no key."""
    with pytest.raises(TypeError, match=exactly("give key or rng, exactly one of them; got neither")):
        Mask(SHAPE)  # type: ignore[call-overload]
    for key, rng in [(1, 1), (1, None), (None, 1), (None, None)]:
        with pytest.raises(TypeError, match=exactly("give key or rng, exactly one of them; got both")):
            Mask(SHAPE, key=key, rng=rng)  # type: ignore[call-overload]


# ---- shapes and axes -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("shape", "kind", "message"),
    [
        (-1, ValueError, "shape must have lengths in [0, 2**63), got (-1,)"),
        ((3, -4), ValueError, "shape must have lengths in [0, 2**63), got (3, -4)"),
        ((2**63,), ValueError, f"shape must have lengths in [0, 2**63), got ({2**63},)"),
        ((1,) * 65, ValueError, "shape must have at most 64 axes, got 65"),
        (1.5, TypeError, "shape must be an integer or a sequence of integers, got 1.5"),
        ((1, 2.0), TypeError, "shape must be an integer or a sequence of integers, got (1, 2.0)"),
        ("45", TypeError, "shape must be an integer or a sequence of integers, got '45'"),
        (None, TypeError, "shape must be an integer or a sequence of integers, got None"),
        ((2, None), TypeError, "shape must be an integer or a sequence of integers, got (2, None)"),
        (
            (2**32, 2**32),
            ValueError,
            f"a mask has at most 2**63 elements, got {2**64} for the noise_shape ({2**32}, {2**32})",
        ),
        (
            (2**62, 2, 2),
            ValueError,
            f"a mask has at most 2**63 elements, got {2**64} for the noise_shape ({2**62}, 2, 2)",
        ),
    ],
    ids=str,
)
def test_shape(shape: Any, kind: type[Exception], message: str) -> None:
    with pytest.raises(kind, match=exactly(message)):
        Mask(shape, key=0)


def test_the_largest_mask_is_legal(backend: str) -> None:
    assert Mask((2**31, 2**32), key=0).window((0, 0), (1, 8)).keep().shape == (1, 8)
    assert Mask((2**62, 2**62), key=0, shared_axes=0).window((0, 0), (1, 8)).keep().shape == (1, 8)


AXES: list[tuple[Any, type[Exception], str]] = [
    (2, ValueError, "shared_axes must be in [-2, 2) for 2 axes, got 2"),
    (-3, ValueError, "shared_axes must be in [-2, 2) for 2 axes, got -3"),
    ((0, 0), ValueError, "shared_axes must name each axis once, got (0, 0)"),
    ((0, 1, -1), ValueError, "shared_axes must name each axis once, got (0, 1, -1)"),
    ([1, -1], ValueError, "shared_axes must name each axis once, got (1, -1)"),
    (0.0, TypeError, "shared_axes must be an integer or a sequence of integers, got 0.0"),
    ((0, 1.0), TypeError, "shared_axes must be an integer or a sequence of integers, got (0, 1.0)"),
    ("0", TypeError, "shared_axes must be an integer or a sequence of integers, got '0'"),
    (None, TypeError, "shared_axes must be an integer or a sequence of integers, got None"),
    ((None,), TypeError, "shared_axes must be an integer or a sequence of integers, got (None,)"),
]
_FIT = "noise_shape must have one entry an axis, each 1 (shared), the axis's length or None (full)"
_SEQUENCE = "noise_shape must be a sequence of integers and None"
NOISE_SHAPES: list[tuple[Any, type[Exception], str]] = [
    ((1,), ValueError, f"{_FIT}; for the shape (4, 5) got (1,)"),
    ((1, 5, 1), ValueError, f"{_FIT}; for the shape (4, 5) got (1, 5, 1)"),
    ((), ValueError, f"{_FIT}; for the shape (4, 5) got ()"),
    ((1, 6), ValueError, f"{_FIT}; for the shape (4, 5) got (1, 6)"),
    ((5, 4), ValueError, f"{_FIT}; for the shape (4, 5) got (5, 4)"),
    ((1, 5.0), TypeError, f"{_SEQUENCE}, got (1, 5.0)"),
    ("15", TypeError, f"{_SEQUENCE}, got '15'"),
    (1, TypeError, f"{_SEQUENCE}, got 1"),
]


def sharing_calls(function: str, out: Array, **arguments: Any) -> Any:
    if function == "dropout":
        return dropout(X, rng=0, out=out, **arguments)
    if function == "Mask":
        return Mask(SHAPE, key=0, **arguments)
    return Dropout(rng=0, **arguments)(X)  # some of it can be said only when x is there


@pytest.mark.parametrize(("axes", "kind", "message"), AXES, ids=[repr(case[0]) for case in AXES])
@pytest.mark.parametrize("function", ["dropout", "Mask", "Dropout"])
def test_shared_axes(backend: str, function: str, axes: Any, kind: type[Exception], message: str) -> None:
    out = sentinel(SHAPE)
    with pytest.raises(kind, match=exactly(message)):
        sharing_calls(function, out, shared_axes=axes)
    assert out.tobytes() == sentinel(SHAPE).tobytes()


@pytest.mark.parametrize(("noise", "kind", "message"), NOISE_SHAPES, ids=[repr(case[0]) for case in NOISE_SHAPES])
@pytest.mark.parametrize("function", ["dropout", "Mask", "Dropout"])
def test_noise_shape(backend: str, function: str, noise: Any, kind: type[Exception], message: str) -> None:
    out = sentinel(SHAPE)
    with pytest.raises(kind, match=exactly(message)):
        sharing_calls(function, out, noise_shape=noise)
    assert out.tobytes() == sentinel(SHAPE).tobytes()


# What fits no array at all.
NEVER: list[tuple[dict[str, Any], str, str]] = [
    *[
        (
            {"noise_shape": noise},
            f"{_FIT}; for the shape (4, 5) got {noise}",
            f"noise_shape must have entries in [1, 2**63) or None in a layer, got {noise}",
        )
        for noise in [(0, 5), (-1, None), (4, 2**63)]
    ],
    (
        {"noise_shape": (None,) * 65},
        f"{_FIT}; for the shape (4, 5) got {(None,) * 65}",
        "noise_shape must have at most 64 entries, got 65",
    ),
    *[
        (
            {"shared_axes": (0, axis)},
            f"shared_axes must be in [-2, 2) for 2 axes, got {axis}",
            f"shared_axes must be in [-64, 64), for arrays of any shape, got (0, {axis})",
        )
        for axis in (64, -65, 2**70)
    ],
    (
        {"shared_axes": (1, 1)},
        "shared_axes must name each axis once, got (1, 1)",
        "shared_axes must name each axis once, got (1, 1)",
    ),
]


@pytest.mark.parametrize(("sharing", "words", "words_of_a_layer"), NEVER, ids=[str(case[0])[:40] for case in NEVER])
def test_what_fits_no_array(backend: str, sharing: dict[str, Any], words: str, words_of_a_layer: str) -> None:
    """A layer is told when it is made, before a key is drawn for it."""
    out, rng = sentinel(SHAPE), np.random.default_rng(0)
    for function in ("dropout", "Mask"):
        with pytest.raises(ValueError, match=exactly(words)):
            sharing_calls(function, out, **sharing)
    with pytest.raises(ValueError, match=exactly(words_of_a_layer)):
        Dropout(rng=rng, **sharing)
    assert rng.bit_generator.state == np.random.default_rng(0).bit_generator.state
    assert out.tobytes() == sentinel(SHAPE).tobytes()


def test_a_length_of_0_is_one_where_the_shape_is_known(backend: str) -> None:
    assert Mask((0, 5), key=0, noise_shape=(0, 1)) == Mask((0, 5), key=0, noise_shape=(None, 1))
    assert dropout(np.ones((0, 5)), noise_shape=(0, 5)).shape == (0, 5)
    assert Dropout(noise_shape=(None, 5))(np.ones((0, 5))).shape == (0, 5)


@pytest.mark.parametrize("function", ["dropout", "Mask", "Dropout"])
def test_both_ways_to_share(backend: str, function: str) -> None:
    out = sentinel(SHAPE)
    message = r"^give shared_axes or noise_shape, not both; got \(?0.*\)? and \(1, None\)$"
    for axes in (0, (0,)):
        with pytest.raises(ValueError, match=message):
            sharing_calls(function, out, shared_axes=axes, noise_shape=(1, None))
    assert out.tobytes() == sentinel(SHAPE).tobytes()


def test_no_axis_of_a_0d_array_can_be_shared() -> None:
    with pytest.raises(ValueError, match=exactly("shared_axes must be in [0, 0) for 0 axes, got 0")):
        Mask((), key=0, shared_axes=0)


_INSIDE = "the window must lie inside the mask's shape (4, 5); "
_ENTRIES = "start and shape must have one entry for each of the mask's 2 axes"
_INTEGERS = "must be an integer or a sequence of integers"


@pytest.mark.parametrize(
    ("start", "shape", "kind", "message"),
    [
        ((0, 0), (5, 5), ValueError, _INSIDE + "on axis 0 it goes from 0 to 5 of 4"),
        ((0, 3), (4, 3), ValueError, _INSIDE + "on axis 1 it goes from 3 to 6 of 5"),
        ((-1, 0), (2, 5), ValueError, _INSIDE + "on axis 0 it goes from -1 to 1 of 4"),
        ((5, 0), (0, 5), ValueError, _INSIDE + "on axis 0 it goes from 5 to 5 of 4"),
        ((2**70, 0), (1, 1), ValueError, _INSIDE + f"on axis 0 it goes from {2**70} to {2**70 + 1} of 4"),
        ((0, 0), (-1, 5), ValueError, "shape must have lengths in [0, 2**63), got (-1, 5)"),
        (0, 4, ValueError, f"{_ENTRIES}, got (0,) and (4,)"),
        ((0, 0), (4,), ValueError, f"{_ENTRIES}, got (0, 0) and (4,)"),
        ((0, 0, 0), (4, 5), ValueError, f"{_ENTRIES}, got (0, 0, 0) and (4, 5)"),
        ((0, 0.5), (4, 5), TypeError, f"start {_INTEGERS}, got (0, 0.5)"),
        ((0, 0), (4, 5.0), TypeError, f"shape {_INTEGERS}, got (4, 5.0)"),
        (None, (4, 5), TypeError, f"start {_INTEGERS}, got None"),
    ],
    ids=str,
)
def test_window(start: Any, shape: Any, kind: type[Exception], message: str) -> None:
    with pytest.raises(kind, match=exactly(message)):
        Mask(SHAPE, key=0).window(start, shape)


# ---- arrays --------------------------------------------------------------------------------------


class Subclass(np.ndarray[Any, Any]):
    pass


def raises(call: Call, kind: type[Exception], message: str, *unchanged: Array) -> None:
    """The call fails with just these words, and the arrays keep their bytes."""
    before = [array.tobytes() for array in unchanged]
    with pytest.raises(kind, match=exactly(message)) as caught:
        call()
    assert caught.type is kind
    assert [array.tobytes() for array in unchanged] == before


def each_call(x: Any, out: Any) -> list[Call]:
    """All that take arrays. `out` is None where nothing is wrong with it."""
    calls: list[Call] = [lambda: Mask(SHAPE, key=0).apply(x, out=out), lambda: dropout(x, rng=0, out=out)]
    if out is None:
        layer = Dropout(rng=0)
        layer(X)
        calls += [lambda: Dropout(rng=0)(x), lambda: layer.backward(x)]
    return calls


NOT_ARRAYS = {
    "list": X.tolist(),
    "scalar": np.float32(1),
    "float": 1.0,
    "None": None,
    "masked": np.ma.masked_array(X),
    "subclass": X.view(Subclass),
    "subclass-of-memmap": X.view(type("Subclass", (np.memmap,), {})),
    "recarray": X.view(np.recarray),
    "memoryview": X.data,
}


def not_an_array(name: str, value: Any) -> str:
    if not isinstance(value, np.ndarray):
        return f"{name} must be a numpy.ndarray, got {type(value).__name__}"
    return (
        f"{name} must be a numpy.ndarray or numpy.memmap itself, got the subclass {type(value).__name__}; "
        f"numpy.asarray({name}) makes one, without what the subclass adds"
    )


@pytest.mark.parametrize("name", NOT_ARRAYS)
def test_x_that_is_no_array(backend: str, name: str) -> None:
    x, out = NOT_ARRAYS[name], sentinel(SHAPE)
    message = not_an_array("x", x)
    for call in each_call(x, None):
        raises(call, TypeError, message)
    for call in each_call(x, out):
        raises(call, TypeError, message, out)


@pytest.mark.parametrize("name", [name for name in NOT_ARRAYS if name != "None"])
def test_out_that_is_no_array(backend: str, name: str) -> None:
    out = NOT_ARRAYS[name]
    before = copy.deepcopy(out) if isinstance(out, np.ndarray) else None
    for call in each_call(X, out):
        raises(call, TypeError, not_an_array("out", out))
    assert before is None or before.tobytes() == np.ndarray.tobytes(out)  # type: ignore[arg-type]


def test_what_the_words_for_a_subclass_advise(backend: str) -> None:
    for array in NOT_ARRAYS.values():
        if isinstance(array, np.ndarray):
            assert np.array_equal(Mask(SHAPE, key=0).apply(np.asarray(array)), Mask(SHAPE, key=0).apply(X))


def test_a_memmap_is_taken(backend: str) -> None:
    x, out = X.copy().view(np.memmap), sentinel(SHAPE).view(np.memmap)
    assert Mask(SHAPE, key=0).apply(x, out=out) is out
    y = dropout(x, rng=0)
    assert type(y) is np.ndarray
    assert np.array_equal(y, dropout(X, rng=0))
    assert np.array_equal(out, Mask(SHAPE, key=0).apply(X))


BAD_DTYPES = [
    *[np.dtype(kind) for kind in ("?", "i1", "u2", "i4", "i8", "u8", "c8", "c16", "S4", "U2", "M8[s]", "m8[s]", "V4")],
    *[np.dtype(kind) for kind in (np.longdouble, object, "f4,f4")],
    *[np.dtype(kind).newbyteorder() for kind in (np.float16, np.float32, np.float64)],
    *[np.dtype(kind) for kind in (ml_dtypes.float8_e4m3fn, ml_dtypes.float8_e5m2, ml_dtypes.int4)],
]


@pytest.mark.parametrize("dtype", BAD_DTYPES, ids=str)
def test_dtype_of_x(backend: str, dtype: np.dtype[Any]) -> None:
    x, out = np.zeros(SHAPE, dtype), sentinel(SHAPE)
    message = f"x must have dtype float16, bfloat16, float32 or float64 in native byte order, got {dtype}"
    for call in each_call(x, None):
        raises(call, TypeError, message)
    for call in (*each_call(x, out), *each_call(x, x)):
        raises(call, TypeError, message, out)


@pytest.mark.parametrize("wanted", DTYPES.values(), ids=lambda dtype: f"x={dtype}")
def test_dtype_of_out(backend: str, wanted: np.dtype[Any]) -> None:
    x = np.ones(SHAPE, wanted)
    for dtype in (*DTYPES.values(), np.dtype(np.uint16), np.dtype(np.int32), wanted.newbyteorder()):
        if dtype != wanted:
            out = sentinel(SHAPE, dtype)
            for call in each_call(x, out):
                raises(call, TypeError, f"out must have the dtype of x, {wanted}, got {dtype}", out, x)


@pytest.mark.parametrize("shape", [(5, 4), (4,), (4, 5, 1), (20,), (), (4, 6), (0, 5)], ids=str)
def test_shape_of_x(backend: str, shape: tuple[int, ...]) -> None:
    x, out, mask = np.ones(shape, np.float32), sentinel(SHAPE), Mask(SHAPE, key=0)
    layer = Dropout(rng=0)
    layer(X)
    message = f"x must have the mask's shape (4, 5), got {shape}"
    raises(lambda: mask.apply(x), ValueError, message)
    raises(lambda: mask.apply(x, out=out), ValueError, message, out)
    raises(lambda: layer.backward(x), ValueError, message)


@pytest.mark.parametrize("shape", [(5, 4), (4,), (1, 5), (4, 1), (4, 5, 1), (20,), (), (8, 5), (0, 5)], ids=str)
def test_shape_of_out(backend: str, shape: tuple[int, ...]) -> None:
    out = sentinel(shape)
    for call in each_call(X, out):
        raises(call, ValueError, f"out must have the shape of x, (4, 5), got {shape}", out)


def test_out_that_is_read_only(backend: str) -> None:
    out = sentinel(SHAPE)
    out.flags.writeable = False
    for call in each_call(X, out):
        raises(call, ValueError, "out must be writable, got a read-only array", out)
    x = X.copy()
    x.flags.writeable = False
    for call in each_call(x, x):
        raises(call, ValueError, "out must be writable, got a read-only array", x)
    empty = np.broadcast_to(np.float32(1), (0, 5))
    with pytest.raises(ValueError, match=exactly("out must be writable, got a read-only array")):
        Mask((0, 5), key=0).apply(empty, out=empty)


@pytest.mark.parametrize("strides", [(0, 4), (4, 4), (16, 4), (-4, 8)], ids=str)
def test_out_that_overlaps_itself(backend: str, strides: tuple[int, int]) -> None:
    row = sentinel((20,))
    out = np.lib.stride_tricks.as_strided(row[3:], SHAPE, strides)
    for call in (*each_call(X, out), *each_call(out, out)):
        raises(call, ValueError, f"out must not overlap itself, got the strides {strides} for the shape (4, 5)", row)


@pytest.mark.parametrize("strides", [(20, 4), (24, 4), (-20, 4), (4, 16), (8, -32)], ids=str)
def test_out_with_strides_that_do_not_overlap(backend: str, strides: tuple[int, int]) -> None:
    memory = np.zeros(120, np.float32)
    out = np.lib.stride_tricks.as_strided(memory[60:], SHAPE, strides)
    assert np.array_equal(Mask(SHAPE, key=0).apply(X, out=out), Mask(SHAPE, key=0).apply(X))


def test_a_call_that_fails_before_the_draw_takes_no_randomness(backend: str) -> None:
    rng = np.random.default_rng(0)
    layer = Dropout(rng=0)
    calls: tuple[Callable[[], Any], ...] = (
        lambda: dropout([1.0], rng=rng),  # type: ignore[arg-type]
        lambda: dropout(X, 1.5, rng=rng),
        lambda: dropout(X, shared_axes=5, rng=rng),
        lambda: dropout(X, noise_shape=(1, 2), rng=rng),
        lambda: layer([1.0]),  # type: ignore[arg-type]
    )
    for call in calls:
        with pytest.raises((TypeError, ValueError)):
            call()
    assert rng.bit_generator.random_raw() == np.random.default_rng(0).bit_generator.random_raw()
    assert layer.draw == 0


def test_an_empty_mask_of_a_huge_shape_has_no_bits(backend: str) -> None:
    assert Mask((2**62, 2**62, 2**62, 0), key=0).packed().size == 0


_OVERLAP = "out must be x itself or not overlap it, got an array that shares part of its memory"


@pytest.mark.parametrize(
    ("x_of", "out_of"),
    [
        pytest.param(lambda m: m[:20], lambda m: m[1:21], id="one-element-on"),
        pytest.param(lambda m: m[1:21], lambda m: m[:20], id="one-element-back"),
        pytest.param(lambda m: m[:20], lambda m: m[19:39], id="one-in-common"),
        pytest.param(lambda m: m[:20], lambda m: m[:20][::-1], id="reversed"),
        pytest.param(lambda m: m[:20], lambda m: m[:40:2], id="same-start-other-step"),
        pytest.param(lambda m: m[:40:2], lambda m: m[:20], id="other-step"),
        pytest.param(lambda m: m[:60:3], lambda m: m[1:39:2][:20], id="interleaved"),
        pytest.param(lambda m: m[:20].view(np.uint8), lambda m: m.view(np.uint8)[2:82], id="half-an-element"),
    ],
)
def test_out_that_overlaps_x(backend: str, x_of: Any, out_of: Any) -> None:
    memory = sentinel((64,))
    x, out = x_of(memory), out_of(memory)
    x, out = (array.view(np.float32) if array.dtype == np.uint8 else array for array in (x, out))
    out = out[: len(x)]
    x = x[: len(out)]
    assert x.shape == out.shape
    assert np.shares_memory(x, out)
    raises(lambda: Mask(x.shape, key=0).apply(x, out=out), ValueError, _OVERLAP, memory)
    raises(lambda: dropout(x, rng=0, out=out), ValueError, _OVERLAP, memory)


def test_out_whose_overlap_takes_ages_to_find_out(backend: str) -> None:
    """Whether two such arrays share an element is a hard problem (integer programming)."""
    memory, shape = np.zeros(1 << 26, np.uint8), (52, 26, 55, 39)
    x = np.ndarray(shape, np.float16, memory.data, 0, (68388, 29616, 63040, 79780))
    out = np.ndarray(shape, np.float16, memory.data, 6486965, (20532, 15, 1067759, 529))
    with pytest.raises(np.exceptions.TooHardError):
        np.shares_memory(x, out, max_work=1_000_000)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"^out must be x itself or not overlap it"):
        Mask(shape, key=0).apply(x, out=out)


def test_out_that_overlaps_x_in_two_dimensions(backend: str) -> None:
    memory = sentinel((50, 60))
    for x, out in [
        (memory[:30, :30], memory[10:40, 10:40]),
        (memory[:50, :50], memory[:50, :50].T),
        (memory[:30], memory[20:50]),
        (memory[:, :31], memory[:, 29:]),
    ]:
        out = out[: x.shape[0], : x.shape[1]]
        x = x[: out.shape[0], : out.shape[1]]
        raises(lambda: Mask(x.shape, key=0).apply(x, out=out), ValueError, _OVERLAP, memory)  # noqa: B023
    big = sentinel((400, 500))
    raises(lambda: dropout(big[:300], rng=0, out=big[100:]), ValueError, _OVERLAP, big)


# ---- state, rng, configuration -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("state", "kind", "message"),
    [
        ({}, ValueError, "state must hold 'key' and 'draw', got []"),
        ({"key": 1}, ValueError, "state must hold 'key' and 'draw', got ['key']"),
        (
            {"key": 1, "draw": 0, "rate": 0.5},
            ValueError,
            "state must hold 'key' and 'draw', got ['draw', 'key', 'rate']",
        ),
        ({"key": 2**64, "draw": 0}, ValueError, f"key must be in [0, 2**64), got {2**64}"),
        ({"key": -1, "draw": 0}, ValueError, "key must be in [0, 2**64), got -1"),
        ({"key": "1", "draw": 0}, TypeError, "key must be an integer, got str"),
        ({"key": 1, "draw": 2**32 + 1}, ValueError, f"draw must be in [0, 2**32] in a state, got {2**32 + 1}"),
        ({"key": 1, "draw": -1}, ValueError, "draw must be in [0, 2**32] in a state, got -1"),
        ({"key": 1, "draw": 0.0}, TypeError, "draw must be an integer, got float"),
        ({"key": 1, "draw": None}, TypeError, "draw must be an integer, got NoneType"),
    ],
    ids=str,
)
def test_state_of_a_layer(state: Any, kind: type[Exception], message: str) -> None:
    layer = Dropout(rng=0)
    layer(X)
    before, mask = layer.state_dict(), layer.mask
    with pytest.raises(kind, match=exactly(message)):
        layer.load_state_dict(state)
    assert layer.state_dict() == before
    assert layer.mask == mask


@pytest.mark.parametrize("rng", ["abc", 1.5, -1, [-1], object()], ids=str)
def test_rng(rng: Any) -> None:
    message = f"rng must be something that numpy.random.default_rng takes, got {rng!r}"
    out = sentinel(SHAPE)
    with pytest.raises((TypeError, ValueError), match=exactly(message)):
        dropout(X, rng=rng, out=out)
    assert out.tobytes() == sentinel(SHAPE).tobytes()
    with pytest.raises((TypeError, ValueError), match=exactly(message)):
        Dropout(rng=rng)
    with pytest.raises((TypeError, ValueError), match=exactly(message)):
        Mask(SHAPE, rng=rng)


def test_show_config_mode() -> None:
    with pytest.raises(ValueError, match=exactly("mode must be 'stdout' or 'dicts', got 'json'")):
        show_config(mode="json")  # type: ignore[call-overload]


def test_use_of_an_unknown_backend() -> None:
    before = _backend.current()
    for bad in ("native", "avx2", "native:mmx", "", "NUMPY"):
        here = ", ".join(_backend.available())
        with pytest.raises(ValueError, match=exactly(f"backend must be one of {here}, got {bad!r}")):
            _backend.use(bad)
    assert _backend.current() == before


# ---- the backend that decides, and the words for it ----------------------------------------------
#
# The compiled backend says only that it cannot take two arrays; _checks.fault has to find something wrong with just
# those, or a user meets a SystemError; and what it finds fault with, no backend may take.


@st.composite
def array_in(draw: st.DrawFn, memory: Array, shapes: list[tuple[int, ...]], dtypes: list[Any]) -> Array:
    """Any array in this memory, mostly a legal one."""
    dtype, shape = np.dtype(draw(st.sampled_from(dtypes))), draw(st.sampled_from(shapes))
    steps = [draw(st.sampled_from([1, 1, -1, 2, -3, 4, 8, 0, 12])) for _ in shape]
    strides = [step * dtype.itemsize for step in steps]
    if draw(st.booleans()):
        strides = list(np.empty(shape, dtype).strides)
    low = sum(min(0, (n - 1) * stride) for n, stride in zip(shape, strides, strict=True)) if 0 not in shape else 0
    array: Array = np.ndarray(shape, dtype, memory.data, draw(st.integers(0, 40)) - low, tuple(strides))
    array.flags.writeable = draw(st.integers(0, 9)) > 0
    kind = draw(st.integers(0, 19))
    return array.view(Subclass) if kind == 0 else array.view(np.memmap) if kind == 1 else array


@settings(max_examples=600)
@given(st.data())
def test_backend_and_words_agree(backend: str, data: st.DataObject) -> None:
    shape = data.draw(st.sampled_from([(3, 4), (3, 4), (), (1, 4), (0, 4), (1, 1)]))
    legal = list(DTYPES.values())
    dtypes = data.draw(st.sampled_from([[kind] for kind in legal] * 3 + [[*legal, ">f4", "<f8", "i4", "?", object]]))
    shapes = [shape] * 9 + [(4, 3), (3, 4, 1), (4,)]
    dtypes = [kind for kind in dtypes if kind is not object]  # no memory of ours can hold objects
    memories = [np.zeros(2048, np.uint8), np.zeros(2048, np.uint8)]
    x = data.draw(array_in(memories[0], shapes, dtypes))
    choice = data.draw(st.integers(0, 3))
    out = x if choice == 0 else data.draw(array_in(memories[choice % 2], shapes, dtypes))
    x, out = (data.draw(st.sampled_from([array] * 30 + [None, [1.0], 1.0])) for array in (x, out))

    strides = tuple(np.empty(shape, np.uint8).strides)
    fault = _checks.fault(x, out, shape)
    before = [memory.tobytes() for memory in memories]
    assert _backend.active.apply(x, out, (shape, strides, 0, 1, 2, 1 << 31)) is (fault is None)
    if fault is not None:
        assert type(fault) in (TypeError, ValueError)
        assert [memory.tobytes() for memory in memories] == before


# Found by a fuzzer.


def test_in_place_through_another_view_of_the_same_elements(backend: str) -> None:
    """An axis of length 1 may have any stride."""
    x = np.arange(4, dtype=np.float32)
    view, out = x[None], x.reshape(1, 4)
    assert view.strides != out.strides
    want = Mask((1, 4), key=0).apply(view)
    assert Mask((1, 4), key=0).apply(view, out=out) is out
    assert x.tobytes() == want.tobytes()


@pytest.mark.skipif(_backend.native is None, reason="the compiled backend is missing")
@pytest.mark.parametrize("shape", [(2**32, 2**32), (2**33, 2**31 + 2**30), (2**63 - 1,)], ids=str)
def test_bits_that_cannot_be_counted(shape: tuple[int, ...]) -> None:
    """What Python never asks the compiled backend for; the product wraps to a size that fits."""
    assert _backend.native is not None
    with pytest.raises(ValueError, match=r"^packed: "):
        _backend.native.packed(np.empty(0, np.uint8), (shape, (5, 7)[: len(shape)], 0, 1, 2, 1 << 31))
