"""The promise about integers: whatever can be one is taken, and a boolean is none, wherever an integer is asked for."""

import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from dropfast import Dropout, Mask, dropout

X = np.ones((4, 5), np.float32)


class Index:
    """What any other library may have for an integer."""

    def __init__(self, value: int) -> None:
        self.value = value

    def __index__(self) -> int:
        return self.value

    def __repr__(self) -> str:
        return str(self.value)


class Boolean(Index):
    """A boolean tensor, as PyTorch's: NumPy's refuse to be an index, these do not."""

    dtype = "torch.bool"


def load(key: Any = 1, draw: Any = 1) -> Dropout:
    layer = Dropout(rng=0)
    layer.load_state_dict({"key": key, "draw": draw})
    return layer


# What takes an integer, with what it says of something else; a 1 is legal in all of them.
TAKES: dict[str, tuple[Callable[[Any], Any], str]] = {
    "Mask-key": (lambda n: Mask((4, 5), key=n), "key must be an integer, got {kind}"),
    "Mask-draw": (lambda n: Mask((4, 5), key=1, draw=n), "draw must be an integer, got {kind}"),
    "state-key": (lambda n: load(key=n).state_dict(), "key must be an integer, got {kind}"),
    "state-draw": (lambda n: load(draw=n).state_dict(), "draw must be an integer, got {kind}"),
}
_AXES: dict[str, Callable[[Any], Any]] = {
    "shape": lambda n: Mask(n, key=1),
    "shared_axes": lambda n: Mask((4, 5), key=1, shared_axes=n),
    "shared_axes-dropout": lambda n: dropout(X, rng=0, shared_axes=n).tobytes(),
    "shared_axes-Dropout": lambda n: repr(Dropout(rng=0, shared_axes=n)),
    "start": lambda n: Mask(5, key=1).window(n, 2),
    "shape-window": lambda n: Mask(5, key=1).window(2, n),
}
for _name, _call in _AXES.items():
    _words = f"{_name.partition('-')[0]} must be an integer or a sequence of integers, got "
    TAKES[_name] = _call, _words + "{value!r}"
    TAKES[f"{_name}-inside"] = lambda n, call=_call: call((n,)), _words + "({value!r},)"  # type: ignore[misc]
_NOISE: dict[str, Callable[[Any], Any]] = {
    "noise_shape": lambda noise: Mask((4, 5), key=1, noise_shape=noise),
    "noise_shape-dropout": lambda noise: dropout(X, rng=0, noise_shape=noise).tobytes(),
    "noise_shape-Dropout": lambda noise: repr(Dropout(rng=0, noise_shape=noise)),
}
for _name, _call in _NOISE.items():
    _words = "noise_shape must be a sequence of integers and None, got "
    TAKES[_name] = lambda n, call=_call: call((n, None)), _words + "({value!r}, None)"  # type: ignore[misc]


@pytest.mark.parametrize("name", TAKES)
@pytest.mark.parametrize("one", [np.int8(1), np.uint64(1), np.array(1), Index(1)], ids=lambda one: type(one).__name__)
def test_any_integer_is_taken(name: str, one: Any) -> None:
    call = TAKES[name][0]
    assert call(one) == call(1)


@pytest.mark.parametrize("name", TAKES)
@pytest.mark.parametrize(
    "bad", [False, True, np.False_, np.True_, np.array(True), Boolean(1), 1.0, "1"], ids=lambda bad: repr(bad)
)
def test_a_boolean_is_no_integer(name: str, bad: Any) -> None:
    call, words = TAKES[name]
    with pytest.raises(TypeError, match=f"^{re.escape(words.format(value=bad, kind=type(bad).__name__))}$"):
        call(bad)


@pytest.mark.parametrize("bad", [True, np.True_, [True, 2], (1, (2, False)), np.array([True, False])], ids=repr)
def test_a_boolean_is_no_seed(bad: Any) -> None:
    message = f"rng must be something that numpy.random.default_rng takes, got {bad!r}"
    for call in (lambda: dropout(X, rng=bad), lambda: Dropout(rng=bad)):
        with pytest.raises(TypeError, match=f"^{re.escape(message)}$"):
            call()
