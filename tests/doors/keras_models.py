"""Whole models with dropfast.keras: Keras' own made ours, and what is copied, saved and loaded."""

import copy
import logging
import pickle
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
from expected import assert_same_bits
from keras import layers
from keras_help import BACKEND, SPATIAL, array, mask_of, ones, set_state, tensor

import dropfast
import dropfast.keras
from dropfast.keras import Dropout, SpatialDropout1D, convert

pytestmark = pytest.mark.filterwarnings(
    "ignore:__array__ implementation doesn't accept a copy:DeprecationWarning",
    "ignore:Model doesn't support `jit_compile=True`:UserWarning",
)

X = np.random.default_rng(0).standard_normal((4, 5, 6), np.float32)


class Block(layers.Layer):
    """A layer of a user, with layers of Keras'."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.first = layers.Dropout(0.3, seed=4, name="first")
        self.others = [layers.Dropout(0.2, (None, 1, None), name="second"), layers.SpatialDropout1D(0.1, name="third")]
        self.supports_masking = True

    def call(self, inputs: Any, training: bool = False) -> Any:
        for layer in (self.first, *self.others):
            inputs = layer(inputs, training=training)
        return inputs


class Subclassed(keras.Model):
    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.block = Block(name="block")
        self.dense = layers.Dense(6)
        self.drop = layers.Dropout(0.5, name="drop")

    def call(self, inputs: Any, training: bool = False) -> Any:
        return self.drop(self.dense(self.block(inputs, training=training)), training=training)


def functional() -> Any:
    inputs = keras.Input((5, 6))
    shared = layers.Dropout(0.5, seed=7, name="shared")
    x = shared(shared(layers.Dense(6)(inputs)))
    x = layers.SpatialDropout1D(0.25, seed=8, name="spatial")(x)
    return keras.Model(inputs, layers.Dense(6)(x))


def sequential() -> Any:
    parts = [layers.Dense(6), layers.Dropout(0.5, (None, 1, None), seed=3, name="drop"), layers.Dense(6)]
    return keras.Sequential([keras.Input((5, 6)), *parts], name="parts")


def nested() -> Any:
    inputs = keras.Input((5, 6))
    x = layers.TimeDistributed(layers.Dropout(0.1, name="each"), name="times")(functional()(inputs))
    return keras.Model(inputs, layers.Dropout(0.1, name="last")(sequential()(x)))


MODELS: dict[str, tuple[Any, list[str]]] = {
    "functional": (functional, ["shared", "spatial"]),
    "sequential": (sequential, ["drop"]),
    "nested": (nested, ["/shared", "/spatial", "times/each", "parts/drop", "last"]),
    "subclassed": (Subclassed, ["block/first", "block/second", "block/third", "drop"]),
}


def dropouts(model: Any) -> list[Any]:
    """Each dropout of a model, Keras' or ours."""
    found: list[Any] = [model] if isinstance(model, layers.Dropout) else []
    for layer in model._layers:
        found += [each for each in dropouts(layer) if each not in found]
    return found


def what_it_is(layer: Any) -> tuple[Any, ...]:
    return layer.name, layer.rate, layer.seed, layer.dtype_policy.name, layer.trainable


# ---- convert -------------------------------------------------------------------------------------


@pytest.mark.parametrize("model", MODELS)
def test_convert(model: str) -> None:
    make, names = MODELS[model]
    it = make()
    it(tensor(X))
    before, places, weights = dropouts(it), list(map(what_it_is, dropouts(it))), it.get_weights()
    paths, inference = [weight.path for weight in it.weights], array(it(tensor(X)))
    turned = convert(it)
    assert len(turned) == len(names)
    for got, want in zip(turned, names, strict=True):
        assert got == want or (want[0] == "/" and got.endswith(want))  # of a model whose name Keras counts up
    assert [id(layer) for layer in dropouts(it)] == [id(layer) for layer in before]
    assert [what_it_is(layer) for layer in before] == places
    assert all(isinstance(layer, Dropout) for layer in before)
    assert [weight.path for weight in it.weights] == paths
    for got, want in zip(it.get_weights(), weights, strict=True):
        assert_same_bits(got, want)
    assert_same_bits(array(it(tensor(X))), inference)
    assert convert(it) == []
    for layer in before:
        if layer.seed is not None:
            assert layer.key == dropfast.Dropout(rng=layer.seed).key
    it(tensor(X), training=True)
    assert all(layer.draw > 0 for layer in before)


@pytest.mark.parametrize("name", ["Dropout", "SpatialDropout1D", "SpatialDropout2D", "SpatialDropout3D"])
@pytest.mark.parametrize("data_format", ["channels_first", "channels_last"])
def test_a_layer_that_was_turned_is_as_one_that_was_made(name: str, data_format: str) -> None:
    more = {"data_format": data_format} if name[-2:] in ("2D", "3D") else {}
    turned = getattr(layers, name)(0.5, seed=3, name="d", dtype="float16", **more)
    made = getattr(dropfast.keras, name)(0.5, seed=3, name="d", dtype="float16", **more)
    assert convert(turned) == [""]
    assert type(turned) is type(made)
    assert turned.get_config() == made.get_config()
    assert turned.noise_shape == made.noise_shape
    assert [v.path for v in turned.variables] == [turned.seed_generator.name + "/state"]
    x = ones(2, *range(3, 4 + int(name[-2]))) if name != "Dropout" else ones(3, 4)
    assert_same_bits(array(turned(tensor(x), training=True)), array(made(tensor(x), training=True)))


def test_convert_says_what_it_leaves(caplog: pytest.LogCaptureFixture) -> None:
    class Own(layers.Dropout):
        pass

    inputs = keras.Input((5, 6))
    x = layers.MultiHeadAttention(2, 3, dropout=0.1, name="attention")(inputs, inputs)
    x = layers.LSTM(6, dropout=0.2, recurrent_dropout=0.1, return_sequences=True, name="lstm")(x)
    x = layers.Bidirectional(layers.GRU(3, dropout=0.2, return_sequences=True), name="both")(x)
    x = layers.RNN(layers.LSTMCell(6, dropout=0.3, name="cell"), return_sequences=True, name="rnn")(x)
    x = layers.GaussianDropout(0.2, name="gaussian")(x)
    x = layers.AlphaDropout(0.25, name="alpha")(x)
    x = Own(0.5, name="own")(x)
    for silent in (layers.Dropout(0.0), layers.GaussianDropout(0.0), layers.GRU(6, return_sequences=True)):
        x = silent(x)
    model = keras.Model(inputs, layers.MultiHeadAttention(2, 3)(x, x))
    kinds = list(map(type, dropouts(model)))
    with caplog.at_level(logging.WARNING, "dropfast.keras"):
        assert convert(model) == []
    assert list(map(type, dropouts(model))) == kinds
    assert [record.getMessage() for record in caplog.records] == [
        "convert leaves attention (MultiHeadAttention, which drops by itself, dropout=0.1), "
        "lstm (LSTM, which drops by itself, dropout=0.2, recurrent_dropout=0.1), "
        "both/forward_gru (GRU, which drops by itself, dropout=0.2), "
        "both/backward_gru (GRU, which drops by itself, dropout=0.2), "
        "rnn/cell (LSTMCell, which drops by itself, dropout=0.3), "
        "gaussian (GaussianDropout, which is other noise, rate=0.2), "
        "alpha (AlphaDropout, which is other noise, rate=0.25), "
        "own (Own, which is a class of its own, rate=0.5) as it is"
    ]


def test_convert_says_nothing_where_nothing_is_left(caplog: pytest.LogCaptureFixture) -> None:
    convert(nested())
    assert caplog.records == []


def test_convert_takes_layers() -> None:
    wrong: Any = [layers.Dropout(0.5)]
    with pytest.raises(TypeError, match=r"^model must be a layer or a model of Keras, got list$"):
        convert(wrong)


def test_convert_changes_nothing_if_a_layer_cannot_be_turned() -> None:
    model = keras.Sequential([layers.Dropout(0.5), layers.Dropout(0.5)])
    model.layers[1].seed = 2**64
    with pytest.raises(ValueError, match=r"^seed must be in \[0, 2\*\*64\), got 18446744073709551616$"):
        convert(model)
    assert not any(isinstance(layer, Dropout) for layer in model.layers)


if BACKEND != "numpy":
    HOW = {"auto": {}, "eager": {"run_eagerly": True}, "jit": {"jit_compile": True}}
    if BACKEND == "torch":
        del HOW["jit"]  # for the first step, before the model is converted, torch.compile would be at work

    @pytest.mark.parametrize("how", HOW.values(), ids=HOW)
    @pytest.mark.parametrize("model", ["nested", "subclassed"])
    def test_a_model_that_has_been_trained_goes_on(model: str, how: dict[str, bool]) -> None:
        it = MODELS[model][0]()
        it.compile(keras.optimizers.Adam(), "mse", **how)
        it.fit(X, X, batch_size=2, verbose=0)
        it.predict(X, verbose=0)
        steps, weights = int(it.optimizer.iterations), it.get_weights()
        convert(it)
        for got, want in zip(it.get_weights(), weights, strict=True):
            assert_same_bits(got, want)
        it.fit(X, X, batch_size=2, verbose=0)
        assert int(it.optimizer.iterations) == steps + 2
        assert all(layer.draw % 2 == 0 and layer.draw for layer in dropouts(it))  # some are called twice in a step


if BACKEND == "torch":

    def test_the_state_dict_has_the_state_of_each_layer() -> None:
        model = keras.Sequential([keras.Input((50,)), layers.Dropout(0.5), Dropout(0.5), layers.Dropout(0.5)])
        convert(model)
        model(tensor(ones(2, 50)), training=True)
        states = {tuple(value.tolist()) for name, value in model.state_dict().items() if name.endswith("state")}
        assert states == {tuple(layer.seed_generator.words.tolist()) for layer in model.layers}


# ---- what Keras' own tests ask of a layer --------------------------------------------------------


@pytest.mark.parametrize("name", ["Dropout", "SpatialDropout1D", "SpatialDropout2D", "SpatialDropout3D"])
def test_a_layer_is_what_it_stands_for(name: str) -> None:
    layer = getattr(dropfast.keras, name)(0.5)
    assert isinstance(layer, getattr(layers, name))
    assert isinstance(layer, layers.Dropout)
    assert isinstance(layer, Dropout)
    assert layer.built
    assert layer.count_params() == 0
    assert len(layer._seed_generators) == 1
    assert len(layer.variables) == 1


def test_a_model_is_built_at_once() -> None:
    model = keras.Sequential([Dropout(0.5), SpatialDropout1D(0.5)])
    assert [layer.count_params() for layer in model.layers] == [0, 0]
    lines: list[str] = []
    model.summary(print_fn=lambda text, **_: lines.append(text))
    assert "unbuilt" not in "".join(lines)


def test_noise_shape_is_a_tuple_of_its_own() -> None:
    given = [20, 1, None]
    layer = Dropout(0.5, given)
    given[0] = 3
    assert layer.noise_shape == (20, 1, None)
    assert type(layer.noise_shape) is tuple


def test_a_subclass_may_have_more() -> None:
    class Counted(Dropout):
        def build(self, shape: Any) -> None:
            self.seen = self.add_weight(shape=(), initializer="zeros", trainable=False)

        def call(self, inputs: Any, training: bool = False) -> Any:
            self.seen.assign_add(1.0)
            return super().call(inputs, training)

    layer = Counted(0.5, seed=2)
    y = layer(tensor(ones(3, 50)), training=True)
    assert_same_bits(array(y), mask_of(layer, (3, 50), 0).apply(ones(3, 50)))
    assert float(layer.seen) == 1


# ---- copies and files ----------------------------------------------------------------------------


def small() -> Any:
    return keras.Sequential([keras.Input((5, 6)), SpatialDropout1D(0.25, seed=3), Dropout(0.5), layers.Dense(2)])


def states(model: Any) -> list[tuple[int, int]]:
    return [(layer.key, layer.draw) for layer in dropouts(model)]


def by_file(model: Any, directory: Path) -> Any:
    model.save(directory / "model.keras")
    return keras.saving.load_model(directory / "model.keras")


COPIES = {
    "file": by_file,
    "deepcopy": lambda model, _: copy.deepcopy(model),
    "pickle": lambda model, _: pickle.loads(pickle.dumps(model)),
}


@pytest.mark.parametrize("way", COPIES.values(), ids=COPIES)
@pytest.mark.parametrize("make", [small, lambda: [m := nested(), convert(m)][0]], ids=["ours", "converted"])
def test_a_copy_goes_on_by_itself(make: Any, way: Any, tmp_path: Path) -> None:
    model = make()
    model(tensor(X), training=True)
    other = way(model, tmp_path)
    assert [type(layer) for layer in dropouts(other)] == [type(layer) for layer in dropouts(model)]
    assert states(other) == states(model)
    assert_same_bits(array(other(tensor(X), training=True)), array(model(tensor(X), training=True)))
    before = states(model)
    other(tensor(X), training=True)
    assert states(model) == before


def test_clones_have_masks_of_their_own() -> None:
    model = nested()
    convert(model)
    model(tensor(X), training=True)
    other = keras.models.clone_model(model, recursive=True)
    assert [type(layer) for layer in dropouts(other)] == [type(layer) for layer in dropouts(model)]
    for mine, theirs in zip(dropouts(model), dropouts(other), strict=True):
        assert theirs.draw == 0
        assert (mine.key == theirs.key) == (mine.seed is not None)  # as with Keras' own


def test_a_clone_can_be_made_ours() -> None:
    """Keras' way to change layers, which makes new weights."""

    def ours(layer: Any) -> Any:
        kind = getattr(dropfast.keras, type(layer).__name__, type(layer))
        return kind.from_config(layer.get_config())

    model = keras.models.clone_model(functional(), clone_function=ours)
    assert {type(layer) for layer in dropouts(model)} == {Dropout, SpatialDropout1D}
    assert [layer.name for layer in model.layers if isinstance(layer, Dropout)] == ["shared", "spatial"]


def test_a_file_of_old_loads() -> None:
    """It was made when dropfast.keras was one module, on the numpy backend, after three steps."""
    model = keras.saving.load_model(Path(__file__).parents[1] / "data" / "keras_layers.keras")
    assert {layer.name: (layer.key, layer.draw) for layer in dropouts(model)} == {
        "s2": (4825892087074085057, 3),
        "s1": (9441442522235856127, 3),
        "d": (1579948266424812280, 3),
        "no_seed": (6166848893311764623, 3),
        "s3": (13449605521255405704, 3),
    }
    for layer in dropouts(model):
        assert type(layer).__name__ in ("Dropout", *(kind.__name__ for kind in SPATIAL.values()))
        assert type(layer).__module__ == "dropfast.keras"


def test_weights_of_a_model_of_ones_own_class_load_once_it_is_converted(tmp_path: Path) -> None:
    model, other = Subclassed(), Subclassed()
    for each in (model, other):
        each(tensor(X))
        convert(each)
    model(tensor(X), training=True)
    set_state(model.drop, 5, 2**32 - 1)
    model.save_weights(tmp_path / "model.weights.h5")
    other.load_weights(tmp_path / "model.weights.h5")
    assert states(other) == states(model)
    assert_same_bits(array(other(tensor(X), training=True)), array(model(tensor(X), training=True)))


def test_kerass_own_layer_does_not_load_ours(tmp_path: Path) -> None:
    def model(dropout: Any) -> Any:
        return keras.Sequential([keras.Input((5, 6)), layers.Dense(2), dropout])

    model(Dropout(0.5)).save_weights(tmp_path / "model.weights.h5")
    with pytest.raises(ValueError, match="expected 0 variables, but received 1 variables"):
        model(layers.Dropout(0.5)).load_weights(tmp_path / "model.weights.h5")
