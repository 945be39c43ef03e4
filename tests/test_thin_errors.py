"""The promise about bad input to what leaves dropped units out: all of the words, on every backend, nothing written."""

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest
from cases import DTYPES
from expected import using
from test_errors import BAD_DTYPES, NOT_ARRAYS, Call, exactly, not_an_array, raises, sentinel
from test_thin import mask_along

from dropfast import Mask, _backend, thin

SHAPE = (4, 6)
MASK = Mask(SHAPE, 0.5, key=7, shared_axes=0)
ROWS = Mask((9, 4), 0.5, key=0, shared_axes=0)
KEPT, KEPT_ROWS = MASK.kept().size, ROWS.kept().size
COMPACT, PART = (4, KEPT), (KEPT_ROWS, KEPT)
X, Y, G = np.ones(SHAPE, np.float32), np.ones(COMPACT, np.float32), np.ones(PART, np.float32)

# By the name of the array that comes in: the call with it, and a legal one.
INPUTS: dict[str, tuple[Callable[..., Any], Any]] = {
    "x": (lambda x, **out: MASK.compress(x, **out), X),
    "y": (lambda y, **out: MASK.expand(y, **out), Y),
    "w": (lambda w, **out: thin.take(w, ROWS, MASK, **out), X),
    "g": (lambda g, **out: thin.put(g, ROWS, MASK, **out), G),
}
each_input = pytest.mark.parametrize("name", INPUTS)


def out_of(name: str) -> tuple[int, ...]:
    return {"x": COMPACT, "y": SHAPE, "w": PART, "g": SHAPE}[name]


def test_they_keep_some_and_drop_some() -> None:
    assert 0 < KEPT < 6
    assert 0 < KEPT_ROWS < 4


# ---- masks ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("mask", "noise_shape"),
    [
        (Mask(SHAPE, key=1), SHAPE),
        (Mask(SHAPE, key=1, shared_axes=(0, 1)), (1, 1)),
        (Mask((), key=1), ()),
        (Mask((1, 1), key=1), (1, 1)),
        (Mask((2, 3, 5), key=1, shared_axes=1), (2, 1, 5)),
        (Mask((0, 5), key=1), (0, 5)),
        (Mask(SHAPE, key=1).window((0, 0), (2, 2)), (2, 2)),
    ],
    ids=str,
)
def test_masks_that_do_not_vary_along_one_axis(backend: str, mask: Mask, noise_shape: tuple[int, ...]) -> None:
    message = f"the mask must vary along just one axis, got one with the noise_shape {noise_shape}"
    x, out = np.ones(mask.shape, np.float32), sentinel(mask.shape)
    for call in (
        mask.kept,
        lambda: mask.compress(x, out=out),
        lambda: mask.expand(x, out=out),
        lambda: thin.take(X, rows=mask, out=out),
        lambda: thin.put(X, cols=mask, out=out),
        lambda: thin.add(out, X, rows=ROWS, cols=mask),
    ):
        raises(call, ValueError, message, out)


def test_weights_need_a_mask(backend: str) -> None:
    w = X.copy()
    for call in (lambda: thin.take(w), lambda: thin.put(w), lambda: thin.add(w, X)):
        raises(call, TypeError, "give rows or cols or both, masks for the axes 0 and 1; got neither", w)
    wrong: list[tuple[str, Any]] = [("rows", MASK.keep()), ("cols", [0, 2]), ("rows", 0.5), ("cols", True)]
    for name, value in wrong:
        for function in (thin.take, thin.put, lambda w, **masks: thin.add(w, X, **masks)):
            message = f"{name} must be a dropfast.Mask, got {type(value).__name__}"
            raises(partial(function, w, **{name: value}), TypeError, message, w)


# ---- arrays --------------------------------------------------------------------------------------


@each_input
@pytest.mark.parametrize("kind", NOT_ARRAYS)
def test_inputs_that_are_no_arrays(backend: str, kind: str, name: str) -> None:
    value, out = NOT_ARRAYS[kind], sentinel(out_of(name))
    raises(lambda: INPUTS[name][0](value, out=out), TypeError, not_an_array(name, value), out)


@each_input
@pytest.mark.parametrize("kind", [kind for kind in NOT_ARRAYS if kind != "None"])
def test_outputs_that_are_no_arrays(backend: str, kind: str, name: str) -> None:
    call, legal = INPUTS[name]
    raises(lambda: call(legal, out=NOT_ARRAYS[kind]), TypeError, not_an_array("out", NOT_ARRAYS[kind]))


@each_input
@pytest.mark.parametrize("dtype", BAD_DTYPES, ids=str)
def test_dtypes_of_inputs(backend: str, dtype: np.dtype[Any], name: str) -> None:
    """Booleans and integers among them."""
    call, legal = INPUTS[name]
    out = sentinel(out_of(name))
    message = f"{name} must have dtype float16, bfloat16, float32 or float64 in native byte order, got {dtype}"
    raises(lambda: call(np.zeros(legal.shape, dtype), out=out), TypeError, message, out)


@each_input
def test_dtypes_of_outputs(backend: str, name: str) -> None:
    call, legal = INPUTS[name]
    for dtype in (*DTYPES.values(), np.dtype(np.int32), np.dtype(np.float32).newbyteorder()):
        if dtype != np.float32:
            out = sentinel(out_of(name), dtype)
            raises(
                partial(call, legal, out=out),
                TypeError,
                f"out must have the dtype of {name}, float32, got {dtype}",
                out,
            )


LENGTHS: list[tuple[str, tuple[int, ...], str]] = [
    ("x", (4, 5), "x must have the mask's shape (4, 6), got (4, 5)"),
    ("x", (6,), "x must have the mask's shape (4, 6), got (6,)"),
    ("y", SHAPE, f"y must have the shape of what the mask keeps, {COMPACT}, got (4, 6)"),
    ("y", (3, KEPT), f"y must have the shape of what the mask keeps, {COMPACT}, got {(3, KEPT)}"),
    ("w", (5, 6), "w must have the length of rows on axis 0, 4, got 5"),
    ("w", (4, 7), "w must have the length of cols on axis 1, 6, got 7"),
    ("w", (4,), "w must have an axis 1 for cols, got the shape (4,)"),
    ("w", (), "w must have an axis 0 for rows, got the shape ()"),
    ("g", (4, KEPT), f"g must have the length of what rows keeps on axis 0, {KEPT_ROWS}, got 4"),
    ("g", (KEPT_ROWS, 6), f"g must have the length of what cols keeps on axis 1, {KEPT}, got 6"),
    ("g", (KEPT_ROWS,), f"g must have an axis 1 for what cols keeps, got the shape {(KEPT_ROWS,)}"),
]


@pytest.mark.parametrize(("name", "shape", "message"), LENGTHS, ids=[f"{name}-{shape}" for name, shape, _ in LENGTHS])
def test_lengths_of_inputs(backend: str, name: str, shape: tuple[int, ...], message: str) -> None:
    """Both numbers are named."""
    out = sentinel(out_of(name))
    raises(lambda: INPUTS[name][0](np.ones(shape, np.float32), out=out), ValueError, message, out)


@each_input
def test_shapes_of_outputs(backend: str, name: str) -> None:
    call, legal = INPUTS[name]
    right = out_of(name)
    for shape in ((right[0], right[1] + 1), right[:1], (*right, 1), (right[0] + 1, right[1])):
        out = sentinel(shape)
        raises(partial(call, legal, out=out), ValueError, f"out must have the shape {right}, got {out.shape}", out)


@each_input
def test_outputs_that_are_read_only_or_overlap(backend: str, name: str) -> None:
    call, legal = INPUTS[name]
    shape = out_of(name)
    out = sentinel(shape)
    out.flags.writeable = False
    raises(lambda: call(legal, out=out), ValueError, "out must be writable, got a read-only array", out)
    row = sentinel((20,))
    for strides in ((0, 4), (4, 4)):
        out = np.lib.stride_tricks.as_strided(row, shape, strides)
        message = f"out must not overlap itself, got the strides {strides} for the shape {shape}"
        raises(partial(call, legal, out=out), ValueError, message, row)

    memory = np.ones(64, np.float32)
    source = memory[: legal.size].reshape(legal.shape)
    message = f"out must not overlap {name}, got an array that shares memory with it"
    for first in (0, 1, legal.size - 1):
        out = memory[first : first + shape[0] * shape[1]].reshape(shape)
        raises(partial(call, source, out=out), ValueError, message, memory)


def test_not_even_where_all_is_kept(backend: str) -> None:
    """What is legal does not depend on what is drawn."""
    x, mask = X.copy(), mask_along(1, SHAPE, 0.0)
    raises(
        lambda: mask.compress(x, out=x),
        ValueError,
        "out must not overlap x, got an array that shares memory with it",
        x,
    )


# ---- the rest ------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [1, 0, None, "yes", np.True_, 1.0], ids=repr)
def test_scaled_is_a_bool(backend: str, value: Any) -> None:
    out = sentinel(SHAPE)
    raises(lambda: MASK.expand(Y, out=out, scaled=value), TypeError, f"scaled must be a bool, got {value!r}", out)


def add_with(w: Any = X, g: Any = G, alpha: Any = 1.0) -> Call:
    return lambda: thin.add(w, g, ROWS, MASK, alpha=alpha)


def test_arguments_of_add(backend: str) -> None:
    w = X.copy()
    for value in NOT_ARRAYS.values():
        raises(add_with(w=value), TypeError, not_an_array("w", value))
        raises(add_with(w, g=value), TypeError, not_an_array("g", value), w)
    raises(add_with(w, g=G.astype(np.float64)), TypeError, "w must have the dtype of g, float64, got float32", w)
    raises(add_with(np.ones((4, 7), np.float32)), ValueError, "w must have the length of cols on axis 1, 6, got 7")
    message = f"g must have the shape of what is kept of w, {PART}, got (4, 6)"
    raises(add_with(w, g=X), ValueError, message, w)
    raises(
        add_with(w, g=w[:KEPT_ROWS, :KEPT]),
        ValueError,
        "w must not overlap g, got an array that shares memory with it",
        w,
    )
    w.flags.writeable = False
    raises(add_with(w), ValueError, "w must be writable, got a read-only array", w)


@pytest.mark.parametrize("value", [True, np.True_, "1", None, 1j, [1.0], np.array(1.0)], ids=repr)
def test_alpha_is_a_real_number(backend: str, value: Any) -> None:
    w = X.copy()
    raises(add_with(w, alpha=value), TypeError, f"alpha must be a real number, got {type(value).__name__}", w)


@pytest.mark.parametrize(
    ("dtype", "value"), [("float16", 7e4), ("float32", -1e39), ("float64", 10**400), ("bfloat16", 1e39)]
)
def test_alpha_that_overflows(backend: str, dtype: str, value: Any) -> None:
    w = X.astype(DTYPES[dtype])
    message = f"alpha must be a number that {dtype} has, got {value}"
    raises(add_with(w, G.astype(DTYPES[dtype]), alpha=value), ValueError, message, w)


def test_numbers_that_alpha_may_be(backend: str) -> None:
    for alpha in (2, 2.0, np.float32(2), np.float16(2), np.int64(2), np.uint8(2)):
        assert thin.add(X.copy(), G, ROWS, MASK, alpha=alpha).max() == 3
    assert np.isinf(thin.add(X.copy(), G, ROWS, MASK, alpha=float("inf"))).sum() == G.size
    assert np.isnan(thin.add(X.copy(), G, ROWS, MASK, alpha=float("nan"))).sum() == G.size


def test_the_compiled_backend_refuses_what_does_not_fit() -> None:
    """Python has looked at everything; nothing is written in the wrong place if it did not."""
    axis, kept = MASK._along()
    out = sentinel(COMPACT)
    read_only = out.copy()
    read_only.flags.writeable = False
    for isa in _backend.available()[:-1]:
        with using(isa):
            move = _backend.active.thin
            for wide, compact, along in [
                (X[:3], out, {axis: kept}),
                (X, out[:, 1:], {axis: kept}),
                (X, out, {0: kept}),
                (X, out, {axis: kept._replace(bits=kept.bits[:0])}),
                (X, out, {axis: kept._replace(bits=kept.bits.astype(np.uint16))}),
                (X, out.view(np.uint32), {axis: kept}),
                (X, read_only, {axis: kept}),
                (X[0], out, {axis: kept}),
            ]:
                with pytest.raises(ValueError, match=exactly("thin: the arrays do not fit each other")):
                    move("compress", wide, compact, along, None)
            with pytest.raises(ValueError, match=exactly("thin: no such move")):
                move("elsewhere", X, out, {axis: kept}, None)  # type: ignore[arg-type]
            with pytest.raises(ValueError, match=exactly("thin: add needs a factor")):
                move("add", X.copy(), out, {axis: kept}, None)
    assert out.tobytes() == sentinel(COMPACT).tobytes()
