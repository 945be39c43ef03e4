"""The promise that the compiled module refuses what it would read or write in the wrong place, whoever calls it."""

from typing import Any

import numpy as np
import pytest

import dropfast
from dropfast import _backend
from dropfast._checks import Kept

if _backend.native is not None:
    native: Any = _backend.native  # whose types say what is legal
    X = np.ones((4, 6), np.float32)
    RECIPE = dropfast.Mask(X.shape, 0.5, key=1)._recipe
    SHAPE, STRIDES, *NUMBERS = RECIPE

    RECIPES: dict[str, tuple[Any, type[Exception], str]] = {
        "list": (([4, 6], STRIDES, *NUMBERS), ValueError, "shape and strides must be tuples of at most 64 integers"),
        "65-axes": (((1,) * 65, (1,) * 65, *NUMBERS), ValueError, "shape and strides must be tuples of at most 64"),
        "one-stride": ((SHAPE, (6,), *NUMBERS), ValueError, "shape and strides differ in length"),
        "negative": (((4, -6), STRIDES, *NUMBERS), OverflowError, "negative"),
        "float": ((SHAPE, STRIDES, 0.5, *NUMBERS[1:]), TypeError, "int"),
    }

    @pytest.mark.parametrize(("recipe", "kind", "message"), RECIPES.values(), ids=RECIPES)
    def test_recipes(recipe: Any, kind: type[Exception], message: str) -> None:
        out = np.zeros_like(X)
        with pytest.raises(kind, match=message):
            native.apply(X, out, recipe)
        assert not out.any()

    # The second has more elements than can be counted.
    @pytest.mark.parametrize(("shape", "size"), [((4, 6), 2), ((2**40, 2**40), 2)], ids=["short", "uncountable"])
    def test_bits(shape: tuple[int, int], size: int) -> None:
        out = np.zeros(size, np.uint8)
        with pytest.raises(ValueError, match=r"^packed: "):
            native.packed(out, (shape, (shape[1], 1), *NUMBERS))
        assert not out.any()

    ALONG = {1: Kept(6, 2, np.packbits([1, 0, 0, 1, 0, 0], bitorder="little"))}
    ALL_OF_8 = {1: Kept(8, 8, np.full(1, 255, np.uint8))}
    THINNED: dict[str, tuple[tuple[Any, ...], str]] = {
        "move": (("squeeze", X, X[:, :2].copy(), ALONG, None), "no such move"),
        "axes": (("compress", X, X[0, :2].copy(), ALONG, None), "the arrays do not fit each other"),
        "dtype": (("compress", X, np.ones((4, 2)), ALONG, None), "the arrays do not fit each other"),
        "integers": (
            ("compress", X.astype(int), np.ones((4, 2), int), ALONG, None),
            "the arrays do not fit each other",
        ),
        "length": (("compress", X, X[:, :3].copy(), ALONG, None), "the arrays do not fit each other"),
        "bits": (("compress", np.ones((4, 9)), np.ones((4, 8)), ALL_OF_8, None), "the arrays do not fit each other"),
        "factor": (("add", X.copy(), X[:, :2].copy(), ALONG, None), "add needs a factor"),
    }

    @pytest.mark.parametrize(("arguments", "message"), THINNED.values(), ids=THINNED)
    def test_arrays_that_are_thinned(arguments: tuple[Any, ...], message: str) -> None:
        _, wide, compact, *_ = arguments
        before = wide.copy(), compact.copy()
        with pytest.raises(ValueError, match=f"^thin: {message}$"):
            native.thin(*arguments)
        assert np.array_equal(wide, before[0])
        assert np.array_equal(compact, before[1])

    def test_arrays_that_are_read_only() -> None:
        wide, compact = X.copy(), X[:, :2].copy()
        for move, written in (("compress", compact), ("expand", wide)):
            written.flags.writeable = False
            with pytest.raises(ValueError, match=r"^thin: the arrays do not fit each other$"):
                native.thin(move, wide, compact, ALONG, None)
            written.flags.writeable = True

    def test_an_instruction_set_that_is_not_there() -> None:
        before = native.isa()
        assert not native.use_isa("sse9")
        assert native.isa() == before
