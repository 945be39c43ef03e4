"""The promise of the layer: a new mask for each call in training, and a state that changes in no other way."""

import copy
import json
import pickle
import re
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from cases import DTYPES, Array, values
from expected import assert_same_bits

from dropfast import Dropout, Mask, _backend

X = np.ones((40, 50), np.float32)


def test_layer_draws_a_new_mask_each_call(backend: str) -> None:
    layer = Dropout(0.5, rng=1)
    for draw in range(5):
        assert layer.draw == draw
        want = Mask(X.shape, 0.5, key=layer.key, draw=draw)
        assert_same_bits(layer(X), want.apply(X))
        assert layer.mask == want
        dy = values(X.shape, DTYPES["float64"])
        assert_same_bits(layer.backward(dy), want.apply(dy))


def test_layer_takes_any_shape(backend: str) -> None:
    layer = Dropout(0.5, noise_shape=(1, None), rng=1)
    assert layer(np.ones((3, 4))).shape == (3, 4)
    assert layer(np.ones((5, 2000))).shape == (5, 2000)
    assert layer.mask is not None
    assert layer.mask.noise_shape == (1, 2000)
    assert Dropout(0.5, shared_axes=-1, rng=1)(np.ones((3, 4, 5))).shape == (3, 4, 5)


def test_layer_in_evaluation_is_the_identity(backend: str) -> None:
    layer = Dropout(0.5, rng=1)
    assert layer.training is True
    layer(X)
    state, mask = layer.state_dict(), layer.mask
    layer.training = False
    assert layer(X) is X
    assert layer.backward(X) is X
    assert layer.state_dict() == state
    assert layer.mask == mask
    layer.training = True
    assert_same_bits(layer(X), Mask(X.shape, 0.5, key=layer.key, draw=1).apply(X))


def test_layer_continues_bit_for_bit(backend: str) -> None:
    layer = Dropout(0.1, shared_axes=0, rng=7)
    for _ in range(3):
        layer(X)
    state = json.loads(json.dumps(layer.state_dict()))  # plain integers: any checkpoint can hold them
    want = [layer(X).tobytes() for _ in range(4)]
    fresh = Dropout(0.1, shared_axes=0)
    fresh.load_state_dict(state)
    assert fresh.state_dict() == state == {"key": layer.key, "draw": 3}
    assert fresh.mask is None
    assert [fresh(X).tobytes() for _ in range(4)] == want


@pytest.mark.parametrize("again", [copy.copy, copy.deepcopy, lambda layer: pickle.loads(pickle.dumps(layer))])
def test_layers_copy_and_pickle(backend: str, again: Any) -> None:
    layer = Dropout(0.1, shared_axes=0, rng=7)
    layer(X)
    twin = again(layer)
    assert twin.state_dict() == layer.state_dict()
    assert twin.mask == layer.mask
    assert repr(twin) == repr(layer)
    assert_same_bits(twin.backward(X), layer.backward(X))
    for _ in range(3):
        assert_same_bits(twin(X), layer(X))
    twin.training = False
    assert layer.training
    assert pickle.loads(pickle.dumps(twin)).training is False


def test_layer_without_a_call_has_no_backward() -> None:
    for layer in (Dropout(rng=0), copy.deepcopy(Dropout(rng=0))):
        with pytest.raises(RuntimeError, match=r"^backward needs a training call of the layer before it$"):
            layer.backward(X)


def test_layer_ends_rather_than_repeat_a_mask(backend: str) -> None:
    layer = Dropout(0.5, rng=0)
    layer.load_state_dict({"key": 9, "draw": 2**32 - 1})
    assert_same_bits(layer(X), Mask(X.shape, 0.5, key=9, draw=2**32 - 1).apply(X))
    assert layer.draw == 2**32
    for _ in range(2):
        with pytest.raises(OverflowError, match=r"^the layer's key 9 has given its 2\*\*32 masks; load a state"):
            layer(X)
    assert layer.state_dict() == {"key": 9, "draw": 2**32}
    again = Dropout(0.5)
    again.load_state_dict(layer.state_dict())
    with pytest.raises(OverflowError):
        again(X)
    layer.training = False
    assert layer(X) is X


def test_a_call_that_fails_gives_its_draw_back(backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    layer = Dropout(0.5, rng=0)
    for wrong in (np.ones(3, int), np.ma.ones(3)):
        with pytest.raises(TypeError):
            layer(wrong)
    assert layer.draw == 0
    assert layer.mask is None

    def meanwhile(*args: Any) -> Any:  # another thread has its turn, and then this call fails
        monkeypatch.undo()
        layer(X)
        raise KeyboardInterrupt

    monkeypatch.setattr(_backend, "apply", meanwhile)
    with pytest.raises(KeyboardInterrupt):
        layer(X)
    assert layer.draw == 2  # draw 1 is in use, and 0 is lost rather than given twice
    assert layer.mask == Mask(X.shape, 0.5, key=layer.key, draw=1)


def test_repr_of_a_layer() -> None:
    assert repr(Dropout(0.1, rng=0)) == "Dropout(0.1)"
    assert repr(Dropout(0.1, shared_axes=0, rng=0)) == "Dropout(0.1, shared_axes=(0,))"
    assert repr(Dropout(0.1, noise_shape=(1, None), rng=0)) == "Dropout(0.1, noise_shape=(1, None))"


def test_threads_that_share_a_layer_get_draws_of_their_own(backend: str) -> None:
    layer = Dropout(0.5, rng=0)
    x = np.ones(256)
    start = threading.Barrier(8)

    def work(_: int) -> list[bytes]:
        start.wait()
        return [layer(x).tobytes() for _ in range(50)]

    with ThreadPoolExecutor(8) as pool:
        outputs = [y for ys in pool.map(work, range(8)) for y in ys]
    assert layer.draw == 400
    assert len(set(outputs)) == 400


# ---- out -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
def test_out(backend: str, dtype: np.dtype[Any]) -> None:
    x = values((30, 41), dtype)
    layer = Dropout(0.5, rng=1)
    for draw in range(2):
        want = Mask(x.shape, 0.5, key=layer.key, draw=draw).apply(x)
        for call in (layer, layer.backward):
            out = x.copy() if draw else np.empty_like(x)
            assert call(out if draw else x, out=out) is out  # in place the second time
            assert_same_bits(out, want)
    assert layer.draw == 2
    assert layer(x, x) is x  # by position
    assert layer.backward(x, x) is x


@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
def test_out_in_evaluation_is_a_copy(backend: str, dtype: np.dtype[Any]) -> None:
    x = values((30, 41), dtype)
    layer = Dropout(0.5, rng=1).eval()
    for call in (layer, layer.backward):
        out = np.empty_like(x.T).T
        assert call(x, out=out) is out
        assert out.tobytes() == x.tobytes()  # signalling NaNs, too
        assert call(x, out=x) is x
    assert layer.state_dict()["draw"] == 0


OUTS: dict[str, tuple[Callable[[Array], Any], type[Exception], str]] = {
    "list": (lambda memory: [], TypeError, "out must be a numpy.ndarray, got list"),
    "shape": (lambda memory: memory[0], ValueError, r"out must have the shape of x, \(40, 50\), got \(50,\)"),
    "dtype": (lambda memory: memory[:40].astype(np.float64), TypeError, "out must have the dtype of x, float32, got"),
    "overlap": (lambda memory: memory[1:], ValueError, "out must be x itself or not overlap it"),
}


@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
@pytest.mark.parametrize("name", OUTS)
def test_an_out_that_is_refused(backend: str, name: str, training: bool) -> None:
    make, kind, words = OUTS[name]
    memory = np.ones((41, 50), np.float32)
    x, out = memory[:40], make(memory)
    layer = Dropout(0.5, rng=1)
    layer(X)
    layer.training = training
    for call in (layer, layer.backward):
        with pytest.raises(kind, match=f"^{words}"):
            call(x, out=out)
    assert (memory == 1).all()
    assert layer.draw == 1


def test_what_is_no_array_is_no_array_in_evaluation_either(backend: str) -> None:
    with pytest.raises(TypeError, match=r"^x must be a numpy\.ndarray, got list$"):
        Dropout(rng=0).eval()([1.0], out=X)  # type: ignore[arg-type]


# ---- attributes ----------------------------------------------------------------------------------


def test_train_and_eval() -> None:
    layer = Dropout(rng=0)
    assert layer.eval() is layer
    assert layer.training is False
    assert layer.train() is layer
    assert layer.training is True


@pytest.mark.parametrize("bad", [0, 1, None, "no", [], np.True_, np.array(False), 0.0], ids=repr)
def test_training_is_a_bool_and_nothing_else(bad: Any) -> None:
    layer = Dropout(rng=0)
    with pytest.raises(TypeError, match=f"^{re.escape(f'training must be a bool, got {bad!r}')}$"):
        layer.training = bad
    assert layer.training is True


@pytest.mark.parametrize("name", ["key", "draw", "mask", "is_training", "p", "shared_axes", "noise_shape"])
def test_what_a_layer_is_cannot_be_changed_by_accident(name: str) -> None:
    with pytest.raises(AttributeError):
        setattr(Dropout(rng=0), name, False)


def test_rate_can_be_set(backend: str) -> None:
    layer = Dropout(0.1, rng=1)
    layer(X)
    before = layer.mask
    layer.rate = np.float32(0.75)
    assert type(layer.rate) is float
    assert layer.rate == 0.75
    assert repr(layer) == "Dropout(0.75)"
    assert layer.mask == before == Mask(X.shape, 0.1, key=layer.key, draw=0)  # what was drawn, was drawn at 0.1
    assert_same_bits(layer.backward(X), Mask(X.shape, 0.1, key=layer.key, draw=0).apply(X))
    assert_same_bits(layer(X), Mask(X.shape, 0.75, key=layer.key, draw=1).apply(X))
    assert layer.mask == Mask(X.shape, 0.75, key=layer.key, draw=1)


@pytest.mark.parametrize("bad", [1.5, -0.1, float("nan"), True, "0.5", None], ids=repr)
def test_a_rate_that_is_refused(backend: str, bad: Any) -> None:
    layer = Dropout(0.5, rng=1)
    with pytest.raises((TypeError, ValueError), match=r"^rate must be "):
        layer.rate = bad
    assert_same_bits(layer(X), Mask(X.shape, 0.5, key=layer.key).apply(X))
