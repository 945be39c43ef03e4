"""Whatever the arguments are: an error names one of them and nothing is written, or all backends give the same bits.

Here hypothesis chooses them, in fuzz.py a fuzzer that is guided by the lines it reaches; tests/fuzz/run has both do it.
"""

import functools
import math
import re
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from random import Random
from typing import Any, NamedTuple, TypeVar

import ml_dtypes
import numpy as np
import pytest
from cases import DTYPES, RATES, Array, Shape
from expected import assert_same_bits, using
from hypothesis import given, note
from hypothesis import strategies as st
from test_guard_pages import ROOM, array_at, walled

from dropfast import Dropout, Mask, _backend, dropout
from dropfast._checks import MAX_NDIM

T = TypeVar("T")

# All arrays lie in one piece of memory, where they may overlap, and the touch of what is around it ends the process.
_walls = ExitStack()
MEMORY = array_at(_walls.enter_context(walled()), (1, ROOM), np.dtype(np.uint8), ROOM)[0]
BEFORE = np.random.default_rng(0).integers(0, 256, ROOM, np.uint8)
MEMORY[:] = BEFORE

HUGE = 2**52  # as the length of an axis: no address space has room for so many elements
SAID = re.compile(
    "(x|out|rate|shape|key|draw|start|shared_axes|noise_shape|rng|start and shape|the window) must "
    "|give shared_axes or noise_shape|a mask has at most"
)


class Subclass(np.ndarray[Any, Any]):
    pass


class Place(NamedTuple):
    """An array that is yet to lie in memory."""

    shape: Shape
    dtype: np.dtype[Any]
    offset: int
    strides: Shape
    kind: str = "plain"

    def on(self, memory: Array) -> Array:
        array: Array = np.ndarray(self.shape, self.dtype, memory.data, self.offset, self.strides)
        array.flags.writeable = self.kind != "read-only"
        return array.view({"memmap": np.memmap, "subclass": Subclass}.get(self.kind, np.ndarray))


# ---- what is chosen ------------------------------------------------------------------------------

JUNK: list[Any] = [
    *(None, True, "0", "", b"1", 0.0, 1.5, -0.5, math.nan, math.inf, 1j, -1, 2, 65, 2**32, 2**63, 2**64, -(2**63)),
    *(10**400, (), (0,), (0, 0), (1, -1), (0.5,), (None,), [1], {0}, {}, (1,) * 65, (2**63,), (2**40, 2**40)),
    *(np.int8(1), np.uint64(2**63), np.float16(0.5), np.float64(2), np.True_, np.array(1), np.array([1, 2])),
    *(object(), int, memoryview(b""), [[1.0]]),
    *(np.broadcast_to(1.0, 3), np.ones(3, object), np.ma.masked_array(np.ones(3))),
]
LEGAL_DTYPES = list(DTYPES.values())
OTHER_DTYPES = [
    *map(np.dtype, (">f2", ">f4", ">f8", "?", "i4", "u2", "f4,f4", "c8", "g", "S3", "U1", "V2", "M8[s]")),
    *map(np.dtype, (ml_dtypes.float8_e5m2, ml_dtypes.int4)),
]
LENGTHS = [*range(6), 1, 2, 3, 63, 64, 65, 127, 128, 129, 300, 5000, HUGE]
NUMBERS = [
    *range(10),
    *(2**31, 2**32, 2**61, 2**63 - 1, 2**63, 2**64 - 1, 2**64, -1, -(2**63)),
    *(None, 1.5, "1", True, np.int64(1), (1,)),
]


class Choices:
    """Arguments, out of a function that gives an integer below another; note() is told what they are in the end."""

    def __init__(self, below: Callable[[int], int], note: Callable[[str], None]) -> None:
        self.below, self.note = below, note

    def pick(self, options: Sequence[T]) -> T:
        return options[self.below(len(options))]

    def mostly(self, legal: T, otherwise: Sequence[Any] = JUNK) -> T | Any:
        return legal if self.below(16) < 15 else self.pick(otherwise)

    def shape(self) -> Shape:
        """Of an array that can be: small, empty, or so large that its like cannot be allocated."""
        shape = [self.pick(LENGTHS) for _ in range(self.below(6))]
        limit = 1000 if self.below(64) < 63 else 2**18  # from which on there are several threads
        while math.prod(n for n in shape if n not in (0, HUGE)) > limit or shape.count(HUGE) > 1:
            shape.pop()
        if HUGE in shape:
            shape = [n if n == HUGE else min(n, 2) for n in shape]
        at = self.below(len(shape) + 1)
        return (*shape[:at], *(1,) * self.pick([0] * 20 + [1, 59]), *shape[at:])

    def place(self, shape: Shape, dtype: np.dtype[Any]) -> Place:
        """Of any strides, mostly of this shape and dtype, and mostly without elements that overlap."""
        shape = self.mostly(shape, [shape[::-1], shape[1:], (*shape, 1)[:MAX_NDIM], (*shape[:-1], 3)])
        dtype = self.mostly(dtype, LEGAL_DTYPES + OTHER_DTYPES)
        # Where there is no second element a stride may be anything.
        strides = [self.pick([0, 8, -1, 2**62, -(2**63), 2**63 - 1])] * len(shape)
        several = [axis for axis, n in enumerate(shape) if n > 1] if 0 not in shape else []
        step = dtype.itemsize
        for axis in sorted(several, key=lambda _: self.below(8)):
            step += self.pick([0, 0, 0, 1, dtype.itemsize, 3 * dtype.itemsize])
            strides[axis] = step * self.pick([1, 1, -1])
            step *= shape[axis]
        if several and self.below(6) == 5:
            strides[self.pick(several)] = self.below(81) - 40
        reach = {axis: (shape[axis] - 1) * strides[axis] for axis in several}
        while sum(map(abs, reach.values())) + dtype.itemsize > ROOM:
            longest = max(reach, key=lambda axis: abs(reach[axis]))
            reach[longest] = strides[longest] = 0
        free = ROOM - dtype.itemsize - sum(map(abs, reach.values()))
        offset = self.pick([0, free, self.below(min(free, 40) + 1), self.below(free + 1)])
        kind = self.pick(["plain"] * 20 + ["read-only", "memmap", "subclass"])
        return Place(shape, dtype, offset - sum(min(0, n) for n in reach.values()), tuple(strides), kind)

    def window(self, part: Shape) -> tuple[Any, Any, Any]:
        """Return the shape of a mask, and the start and the shape of a window."""
        start = tuple(self.pick([0, 0, 0, 1, 130, 2**30]) if axis < 3 else 0 for axis in range(len(part)))
        whole = tuple(map(sum, zip(start, part, strict=True)))
        return self.mostly(whole), self.mostly(start), self.mostly(part)

    def sharing(self, shape: Shape) -> dict[str, Any]:
        """Return shared_axes or noise_shape, or both or none of them."""
        axes = {self.below(len(shape)): self.pick([0, -len(shape)]) for _ in range(self.below(4) if shape else 0)}
        shared_axes = self.mostly(tuple(axis + turn for axis, turn in axes.items()))
        noise_shape = self.mostly(tuple(1 if axis in axes else self.pick([None, n]) for axis, n in enumerate(shape)))
        both = {"shared_axes": shared_axes, "noise_shape": self.mostly(None, [noise_shape])}
        return self.pick([{}, {"shared_axes": shared_axes}, {"noise_shape": noise_shape}, both])

    def recipe(self, shape: Shape) -> Any:
        """What _checks.Recipe describes, or something like it."""
        recipe: list[Any] = [shape, tuple(range(len(shape))), 3, 5, 7, 1 << 31]
        if self.below(2):
            ndim = self.pick([0, 1, 2, 3, 64, 65])
            recipe[:2] = (tuple(self.pick(NUMBERS) for _ in range(ndim)) for _ in range(2))
        for _ in range(self.below(3)):
            recipe[self.below(6)] = self.pick(NUMBERS)
        return self.mostly(tuple(recipe), [tuple(recipe[:-1]), recipe, None, (), 1])


# ---- memory --------------------------------------------------------------------------------------


def lay(place: Any) -> Any:
    return place.on(MEMORY) if isinstance(place, Place) else place


def assert_untouched(but_for: Any = None) -> None:
    """Fail unless all memory is as it was, with the exception of one place; and make that so again."""
    if isinstance(but_for, Place):
        but_for.on(MEMORY)[...] = but_for.on(BEFORE)
    written = np.flatnonzero(MEMORY != BEFORE)
    MEMORY[:] = BEFORE
    assert written.size == 0, f"bytes that are nobody's to write have changed: {written}"


# ---- the properties ------------------------------------------------------------------------------


def outcome(call: Callable[[], Any]) -> Any:
    """Return what a call gives, or its error, which must be one that helps."""
    try:
        return call()
    except MemoryError:
        return MemoryError
    except (TypeError, ValueError) as error:
        if not SAID.match(str(error)):
            raise
        return type(error), str(error)


def any_arguments(choices: Choices) -> None:
    place = choices.place(choices.shape(), choices.pick(LEGAL_DTYPES))
    x = choices.mostly(place)
    out = choices.mostly(choices.pick([None, place, choices.place(place.shape, place.dtype)]))
    one_object = x is out and choices.below(2) == 0  # or two for the same elements
    whole, start, part = choices.window(place.shape)
    rate = choices.mostly(choices.pick([*RATES.values(), choices.below(2**53) / 2**53]))
    key, draw = choices.mostly(choices.below(2**64)), choices.mostly(choices.below(10))
    rng = 0 if key is None else key  # None would be another mask each time
    sharing = choices.sharing(place.shape)

    def mask() -> Mask:
        return Mask(whole, rate, key=key, draw=draw, **sharing).window(start, part)

    def layer(x: Any) -> Array:
        layer = Dropout(rate, rng=rng, **sharing)
        y = layer(x)
        assert_same_bits(layer.backward(x), y)
        return y

    functions: dict[str, Callable[[Any, Any], Any]] = {
        "Mask.apply": lambda x, out: mask().apply(x, out),
        "dropout": lambda x, out: dropout(x, rate, rng=rng, out=out, **sharing),
        "Dropout": lambda x, out: layer(x),
        "Mask.keep": lambda x, out: mask().keep(),
        "Mask.packed": lambda x, out: mask().packed(),
    }
    name = choices.pick(list(functions))
    choices.note(f"{name} of {x=}, {out=}, {one_object=}")
    choices.note(f"with {rate=}, {key=}, {draw=}, {sharing=}, {whole=}, {start=}, {part=}")
    results = []
    for backend in _backend.available():
        x_array, out_array = lay(x), lay(out)
        if one_object:
            out_array = x_array
        with using(backend):
            result = outcome(functools.partial(functions[name], x_array, out_array))
        results.append(np.array(result, subok=False) if isinstance(result, np.ndarray) else result)
        assert_untouched(but_for=out if result is out_array else None)
    for result in results:
        if isinstance(results[-1], np.ndarray):
            assert_same_bits(result, results[-1])
        else:
            assert result == results[-1]


def any_recipe(choices: Choices) -> None:
    """The compiled backend survives what Python never hands to it."""
    assert _backend.native is not None
    x = choices.place(choices.shape(), choices.pick(LEGAL_DTYPES))
    recipe = choices.recipe(x.shape)
    few_bytes = Place((choices.pick([0, 1, 2, 9]),), np.dtype(np.uint8), 0, (1,))
    name, out = choices.pick([("apply", choices.place(x.shape, x.dtype)), ("packed", few_bytes)])
    out = choices.mostly(out)
    choices.note(f"{name} of {x=}, {out=}, {recipe=}")
    try:
        if name == "apply":
            written = _backend.native.apply(lay(x), lay(out), recipe)
        else:
            _backend.native.packed(lay(out), recipe)
            written = True
    except (TypeError, ValueError, OverflowError, IndexError):
        written = False
    assert written in (True, False)
    assert_untouched(but_for=out if written else None)


choosers = st.randoms(use_true_random=False)


@given(choosers)
def test_any_arguments(random: Random) -> None:
    any_arguments(Choices(random.randrange, note))


@pytest.mark.skipif(_backend.native is None, reason="the compiled backend is missing")
@given(choosers)
def test_any_recipe(random: Random) -> None:
    any_recipe(Choices(random.randrange, note))
