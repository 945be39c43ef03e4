"""The promise of dropfast.keras on one backend: that of KERAS_BACKEND. test_keras.py runs these on each of them."""

import doctest
import os
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
from cases import DTYPES, RATES
from expected import assert_same_bits
from keras_help import BACKEND, SPATIAL, Scale, array, gradients, mask_of, ones, set_state, tensor
from test_docs import examples_of, run, session_of

import dropfast.keras
from dropfast import Mask
from dropfast.keras import Dropout, SpatialDropout1D, SpatialDropout2D, SpatialDropout3D

# Keras itself asks TensorFlow and PyTorch for arrays in NumPy 1's way.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy:DeprecationWarning")

# ---- calls ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("rate", RATES.values(), ids=RATES)
@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
def test_bits(dtype: np.dtype[Any], rate: float) -> None:
    if dtype == np.float64 and BACKEND == "jax":
        dtype = np.dtype(np.float32)  # what JAX makes of it
    x = np.random.default_rng(1).standard_normal((5, 300)).astype(dtype)
    layer = Dropout(rate, seed=0, dtype=dtype.name)
    for draw in range(3):
        assert layer.draw == draw
        assert_same_bits(array(layer(tensor(x), training=True)), mask_of(layer, x.shape, draw).apply(x))


@pytest.mark.parametrize("draw", [0, 2**31, 2**32 - 1])
@pytest.mark.parametrize("key", [0, 2**32 - 1, 2**32, 2**63, 2**64 - 1], ids=hex)
def test_all_bits_of_key_and_draw_count(key: int, draw: int) -> None:
    layer = Dropout(0.5, seed=0)
    set_state(layer, key, draw)
    assert (layer.key, layer.draw) == (key, draw)
    y = layer(tensor(ones(3, 50)), training=True)
    assert_same_bits(array(y), Mask((3, 50), 0.5, key=key, draw=draw).apply(ones(3, 50)))
    assert (layer.key, layer.draw) == (key, draw + 1)


def test_seed_is_that_of_dropfast() -> None:
    assert Dropout(0.5, seed=7).key == dropfast.Dropout(0.5, rng=7).key


@pytest.mark.parametrize("noise_shape", [None, (1, None, None), (None, 1, 4), (3, 1, 1)], ids=str)
def test_noise_shape(noise_shape: tuple[int | None, ...] | None) -> None:
    layer, x = Dropout(0.5, noise_shape, seed=1), ones(3, 5, 4)
    want = Mask((3, 5, 4), 0.5, key=layer.key, noise_shape=noise_shape).apply(x)
    assert_same_bits(array(layer(tensor(x), training=True)), want)


@pytest.mark.parametrize("data_format", ["channels_first", "channels_last"])
@pytest.mark.parametrize("dimensions", [2, 3])
def test_spatial(dimensions: int, data_format: str) -> None:
    layer = SPATIAL[f"{dimensions}D"](0.5, data_format=data_format, seed=2)
    x = ones(2, *range(3, 4 + dimensions))
    first = 2 if data_format == "channels_first" else 1
    shared = tuple(range(first, first + dimensions))
    assert_same_bits(
        array(layer(tensor(x), training=True)), Mask(x.shape, 0.5, key=layer.key, shared_axes=shared).apply(x)
    )


def test_spatial_1d() -> None:
    layer, x = SpatialDropout1D(0.5, seed=2), ones(4, 6, 20)
    assert_same_bits(array(layer(tensor(x), training=True)), Mask(x.shape, 0.5, key=layer.key, shared_axes=1).apply(x))


def test_data_format_is_that_of_keras() -> None:
    assert SpatialDropout2D(0.5).data_format == "channels_last"
    keras.config.set_image_data_format("channels_first")
    try:
        assert SpatialDropout3D(0.5).data_format == "channels_first"
    finally:
        keras.config.set_image_data_format("channels_last")


def test_dropped_is_zero_even_for_inf_and_nan() -> None:
    layer, x = Dropout(1.0, seed=0), np.array([[np.inf, -np.inf, np.nan, -1]], np.float32)
    assert_same_bits(array(layer(tensor(x), training=True)), np.zeros((1, 4), np.float32))


def test_inference_is_the_identity_and_draws_nothing() -> None:
    layer, x = Dropout(0.5, seed=0), tensor(ones(2, 3))
    assert layer(x) is x
    assert layer(x, training=False) is x
    model = keras.Sequential([keras.Input((3,)), layer])
    assert_same_bits(model.predict(ones(4, 3), verbose=0), ones(4, 3))
    assert layer.draw == 0


@pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16"])
def test_mixed_precision(policy: str) -> None:
    layer, x = Dropout(0.1, seed=0, dtype=policy), np.random.default_rng(0).standard_normal((4, 100), np.float32)
    got = array(layer(tensor(x), training=True))
    assert_same_bits(got, mask_of(layer, x.shape, 0).apply(x.astype(DTYPES[policy.removeprefix("mixed_")])))


def test_symbolic_calls_draw_nothing() -> None:
    layer = Dropout(0.5, seed=0)
    inputs = keras.Input((3, 4))
    outputs = layer(inputs, training=True)  # dropout in inference too, as Monte Carlo dropout has it
    assert outputs.shape == (None, 3, 4)
    assert outputs.dtype == "float32"
    assert layer.compute_output_shape((None, 3, 4)) == (None, 3, 4)
    assert layer.draw == 0
    y = keras.Model(inputs, outputs)(tensor(ones(2, 3, 4)))
    assert_same_bits(array(y), mask_of(layer, (2, 3, 4), 0).apply(ones(2, 3, 4)))
    assert layer.draw == 1


class MaskAsOutput(keras.Layer):
    def __init__(self) -> None:
        super().__init__()
        self.supports_masking = True

    def call(self, inputs: Any, mask: Any = None) -> Any:
        return keras.ops.cast(mask, "float32")


def test_masking() -> None:
    x = np.array([[[1, 2], [0, 0], [3, 4]]], np.float32)
    model = keras.Sequential([keras.Input((3, 2)), keras.layers.Masking(), Dropout(0.5), MaskAsOutput()])
    assert_same_bits(array(model(tensor(x), training=True)), np.array([[1, 0, 1]], np.float32))


# ---- configuration -------------------------------------------------------------------------------

LAYERS = {
    "Dropout": lambda: Dropout(0.3, (None, 1), seed=5, name="d", dtype="mixed_float16"),
    "Dropout-no-seed": lambda: Dropout(0.3),
    "SpatialDropout1D": lambda: SpatialDropout1D(0.3, seed=5),
    "SpatialDropout2D": lambda: SpatialDropout2D(0.3, "channels_first", seed=5),
    "SpatialDropout3D": lambda: SpatialDropout3D(0.3, data_format="channels_last", seed=5, name="d"),
}


@pytest.mark.parametrize("make", LAYERS.values(), ids=LAYERS)
def test_config_round_trip(make: Any) -> None:
    layer = make()
    again = type(layer).from_config(layer.get_config())
    assert again.get_config() == layer.get_config()
    assert again.noise_shape == layer.noise_shape
    if layer.seed is not None:
        assert again.key == layer.key
    serialized = keras.saving.serialize_keras_object(layer)
    assert serialized["registered_name"] == f"dropfast>{type(layer).__name__}"
    assert keras.saving.deserialize_keras_object(serialized).get_config() == layer.get_config()


@pytest.mark.parametrize("name", ["Dropout", "SpatialDropout1D", "SpatialDropout2D", "SpatialDropout3D"])
def test_config_is_that_of_keras(name: str) -> None:
    theirs = getattr(keras.layers, name)(0.3, seed=5, name="d").get_config()
    ours = getattr(dropfast.keras, name)(0.3, seed=5, name="d").get_config()
    ours.pop("trainable", None)
    theirs.pop("trainable", None)
    assert getattr(dropfast.keras, name).from_config(theirs).get_config()["dtype"] == ours.pop("dtype")
    theirs.pop("dtype")  # a name or a policy, from layer to layer
    assert ours == theirs


def test_state_is_no_weight() -> None:
    layer = Dropout(0.5)
    layer(tensor(ones(2, 3)))
    assert layer.weights == layer.get_weights() == layer.trainable_variables == []
    assert [tuple(v.shape) for v in layer.non_trainable_variables] == [(4,)]


def test_set_random_seed_repeats() -> None:
    keys = []
    for seed in (1, 2, 1):
        keras.utils.set_random_seed(seed)
        keys.append((Dropout(0.5).key, Dropout(0.5).key))
    assert keys[0] == keys[2]
    assert len({*keys[0], *keys[1]}) == 4


# ---- saving and loading --------------------------------------------------------------------------


def network(dropout: Any) -> Any:
    """A model with two dropouts, and weights that repeat."""
    layers = [
        keras.Input((6, 4)),
        SpatialDropout1D(0.25, seed=3),
        keras.layers.Flatten(),
        keras.layers.Dense(8, "relu", kernel_initializer=keras.initializers.GlorotUniform(seed=2)),
        dropout,
        keras.layers.Dense(3, "softmax", kernel_initializer=keras.initializers.GlorotUniform(seed=4)),
    ]
    return keras.Sequential(layers)


def dropouts(model: Any) -> list[Dropout]:
    return [layer for layer in model.layers if isinstance(layer, Dropout)]


def states(model: Any) -> list[tuple[int, int]]:
    return [(layer.key, layer.draw) for layer in dropouts(model)]


SEQUENCES = np.random.default_rng(5).standard_normal((12, 6, 4), np.float32)
CLASSES = np.arange(12, dtype=np.int32) % 3  # with int64 Keras makes JAX warn that it has none by default


def test_a_loaded_model_continues(tmp_path: Path) -> None:
    model = network(Dropout(0.5))
    for _ in range(3):
        model(tensor(SEQUENCES), training=True)
    model.save(tmp_path / "model.keras")
    again = keras.saving.load_model(tmp_path / "model.keras")
    assert states(again) == states(model)
    assert [draw for _, draw in states(again)] == [3, 3]
    assert_same_bits(array(again(tensor(SEQUENCES), training=True)), array(model(tensor(SEQUENCES), training=True)))


def test_loaded_weights_continue(tmp_path: Path) -> None:
    model, other = network(Dropout(0.5)), network(Dropout(0.5))
    model(tensor(SEQUENCES), training=True)
    model.save_weights(tmp_path / "model.weights.h5")
    other.load_weights(tmp_path / "model.weights.h5")
    assert states(other) == states(model)


def test_weights_of_kerass_own_layer_can_be_loaded(tmp_path: Path) -> None:
    theirs, ours = network(keras.layers.Dropout(0.5)), network(Dropout(0.5, seed=8))
    for weight in theirs.weights:
        weight.assign(weight + 1)
    theirs.save_weights(tmp_path / "theirs.weights.h5")
    before = states(ours)[1]
    ours.load_weights(tmp_path / "theirs.weights.h5")
    for got, want in zip(ours.get_weights(), theirs.get_weights(), strict=True):
        assert_same_bits(got, want)
    assert states(ours)[1] == before


def test_a_model_of_another_backend_continues() -> None:
    """It was made by test_keras.py on the numpy backend, which left its layer at the draw 2."""
    model = keras.saving.load_model(os.environ["DROPFAST_TEST_MODEL"])
    (layer,) = dropouts(model)
    assert (layer.key, layer.draw) == (dropfast.Dropout(rng=11).key, 2)
    x = ones(4, 50)
    assert_same_bits(array(model(tensor(x), training=True)), mask_of(layer, x.shape, 2).apply(x))


# ---- errors --------------------------------------------------------------------------------------

WRONG: Any = "1"  # for what mypy would say first

ERRORS: dict[str, tuple[Any, type[Exception], str]] = {
    "rate": (lambda: Dropout(1.5), ValueError, r"^rate must be in \[0, 1\], got 1\.5$"),
    "rate-type": (lambda: Dropout(WRONG), TypeError, "^rate must be a real number"),
    "seed": (lambda: Dropout(0.5, seed=-1), ValueError, r"^seed must be in \[0, 2\*\*64\), got -1$"),
    "seed-type": (lambda: Dropout(0.5, seed=WRONG), TypeError, "^seed must be an integer, got str$"),
    "noise_shape": (
        lambda: Dropout(0.5, WRONG),
        TypeError,
        "^noise_shape must be a sequence of integers and None, got '1'$",
    ),
    "seed-boolean": (lambda: Dropout(0.5, seed=True), TypeError, "^seed must be an integer, got bool$"),
    "noise_shape-boolean": (
        lambda: Dropout(0.5, (True, None)),
        TypeError,
        r"^noise_shape must be a sequence of integers and None, got \(True, None\)$",
    ),
    **{
        f"noise_shape-{noise}": (
            lambda noise=noise: Dropout(0.5, noise),
            ValueError,
            r"^noise_shape must have entries in \[1, 2\*\*63\) or None in a layer, got ",
        )
        for noise in [(20, -1, 10), (20, 0, 10)]
    },
    "data_format": (
        lambda: SpatialDropout2D(0.5, "NCHW"),
        ValueError,
        "^data_format must be 'channels_first' or 'channels_last', got 'NCHW'$",
    ),
    "ndim": (
        lambda: SpatialDropout2D(0.5)(tensor(ones(2, 3))),
        ValueError,
        r"SpatialDropout2D takes inputs of 4 axes, got the shape \(2, 3\)",
    ),
    "shape": (
        lambda: Dropout(0.5, (5, 1))(tensor(ones(2, 3)), training=True),
        ValueError,
        r"noise_shape must have one entry an axis.*for the shape \(2, 3\) got \(5, 1\)",
    ),
    "dtype": (
        lambda: Dropout(0.5)(tensor(ones(2, 3, dtype=np.int32)), training=True),
        TypeError,
        "float64.*, got .*int32",
    ),
}


@pytest.mark.parametrize(("call", "kind", "message"), ERRORS.values(), ids=ERRORS)
def test_errors(call: Any, kind: type[Exception], message: str) -> None:
    with pytest.raises(kind, match=message):
        call()


def test_no_mask_is_given_twice() -> None:
    layer = Dropout(0.5, seed=0)
    set_state(layer, layer.key, 2**32)
    with pytest.raises(OverflowError, match=rf"the layer's key {layer.key} has given its 2\*\*32 masks"):
        layer(tensor(ones(2, 3)), training=True)
    assert layer.draw == 2**32


# ---- training ------------------------------------------------------------------------------------

# The numpy backend cannot train: Keras has no gradients there.
if BACKEND != "numpy":

    @pytest.mark.parametrize("run_eagerly", [False, True], ids=["compiled", "eager"])
    def test_fit_takes_the_next_mask_each_step(run_eagerly: bool) -> None:
        layer = Dropout(0.5, seed=4)
        model = keras.Sequential(
            [keras.Input((16,)), layer, keras.layers.Dense(1, use_bias=False, kernel_initializer="ones")]
        )
        model.compile(keras.optimizers.SGD(0.0), "mean_absolute_error", run_eagerly=run_eagerly)
        x = np.random.default_rng(0).integers(0, 100, (8, 16)).astype(np.float32)  # whose sums are exact
        history = model.fit(x, np.zeros((8, 1)), batch_size=8, epochs=4, shuffle=False, verbose=0)
        assert layer.draw == 4
        want = [mask_of(layer, x.shape, draw).apply(x).sum(1).mean() for draw in range(4)]
        assert len(set(want)) == 4
        assert history.history["loss"] == want

    def test_the_gradient_is_the_same_mask() -> None:
        layer = Dropout(0.3, seed=6)
        model = keras.Sequential([keras.Input((50,)), Scale(), layer])
        (gradient,) = gradients(model, ones(1, 50))
        assert_same_bits(gradient, mask_of(layer, (1, 50), 0).apply(ones(1, 50))[0])

    def test_last_short_batch_and_new_batch_sizes() -> None:
        model = network(Dropout(0.5))
        model.compile("sgd", "sparse_categorical_crossentropy")
        model.fit(SEQUENCES, CLASSES, batch_size=5, verbose=0)
        assert [draw for _, draw in states(model)] == [3, 3]
        model.evaluate(SEQUENCES, CLASSES, verbose=0)
        model.predict(SEQUENCES, verbose=0)
        assert [draw for _, draw in states(model)] == [3, 3]

    def test_an_interrupted_run_continues_bit_for_bit(tmp_path: Path) -> None:
        def train(model: Any, epochs: int) -> Any:
            model.fit(SEQUENCES, CLASSES, batch_size=4, epochs=epochs, shuffle=False, verbose=0)
            return model

        def start() -> Any:
            model = network(Dropout(0.5, seed=9))
            model.compile(keras.optimizers.SGD(0.1, momentum=0.9), "sparse_categorical_crossentropy")
            return model

        straight = train(start(), 4)
        train(start(), 2).save(tmp_path / "half.keras")
        resumed = train(keras.saving.load_model(tmp_path / "half.keras"), 2)
        for got, want in zip(resumed.get_weights(), straight.get_weights(), strict=True):
            assert_same_bits(got, want)
        assert [draw for _, draw in states(resumed)] == [12, 12]

    @pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16"])
    def test_fit_in_mixed_precision(policy: str) -> None:
        keras.config.set_dtype_policy(policy)
        try:
            model = network(Dropout(0.5))
        finally:
            keras.config.set_dtype_policy("float32")
        model.compile("sgd", "sparse_categorical_crossentropy")
        history = model.fit(SEQUENCES, CLASSES, epochs=2, verbose=0)
        assert np.isfinite(history.history["loss"]).all()
        assert [draw for _, draw in states(model)] == [2, 2]


if BACKEND in ("tensorflow", "torch"):

    def test_jit_compile_is_refused() -> None:
        model = network(Dropout(0.5))
        with pytest.warns(UserWarning, match="Model doesn't support `jit_compile=True`"):
            model.compile("sgd", "sparse_categorical_crossentropy", jit_compile=True)
        assert not model.jit_compile
        model.fit(SEQUENCES, CLASSES, verbose=0)
        assert [draw for _, draw in states(model)] == [1, 1]


if BACKEND == "tensorflow":
    import tensorflow as tf

    def test_xla_around_a_model_is_refused() -> None:
        model = network(Dropout(0.5))
        with pytest.raises(tf.errors.InvalidArgumentError, match=r"unsupported operations.*MutexLock"):  # the draw's
            tf.function(lambda x: model(x, training=True), jit_compile=True)(SEQUENCES)
        assert_same_bits(
            tf.function(lambda x: tf.argmax(model(x), 1), jit_compile=True)(SEQUENCES).numpy(),
            model.predict(SEQUENCES, verbose=0).argmax(1),
        )

    def test_inference_can_be_exported(tmp_path: Path) -> None:
        model = network(Dropout(0.5))
        model.compile("sgd", "sparse_categorical_crossentropy")
        model.fit(SEQUENCES, CLASSES, verbose=0)
        model.export(tmp_path / "model", verbose=False)
        loaded = tf.saved_model.load(tmp_path / "model")
        np.testing.assert_allclose(loaded.serve(SEQUENCES), model.predict(SEQUENCES, verbose=0), rtol=1e-5)

    def test_a_stateless_call_in_a_graph() -> None:
        layer, x = Dropout(0.5, seed=0), ones(20, 30)
        layer(x)

        @tf.function(autograph=False)
        def step(state: Any, x: Any) -> Any:
            return layer.stateless_call([], [state], x, training=True)

        state = tf.constant(layer.seed_generator.state.value)
        for draw in range(3):
            y, (state,) = step(state, x)
            assert_same_bits(array(y), mask_of(layer, x.shape, draw).apply(x))
        assert layer.draw == 0

    def test_no_mask_is_given_twice_in_a_graph() -> None:
        layer = Dropout(0.5, seed=0)
        set_state(layer, layer.key, 2**32)
        with pytest.raises(tf.errors.InvalidArgumentError, match=r"draw must be in \[0, 2\*\*32\), got\] \[4294967296"):
            tf.function(lambda x: layer(x, training=True))(ones(2, 3))


if BACKEND == "jax":
    import jax

    def test_a_compiled_step_is_compiled_once() -> None:
        layer, traces = Dropout(0.5, seed=0), []
        layer(ones(2, 3))

        @jax.jit
        def step(state: Any, x: Any) -> Any:
            traces.append(1)
            return layer.stateless_call([], [state], x, training=True)

        state, x = layer.seed_generator.state.value, ones(20, 30)
        for draw in range(3):
            y, (state,) = step(state, x)
            assert_same_bits(array(y), mask_of(layer, x.shape, draw).apply(x))
        assert len(traces) == 1
        assert layer.draw == 0

    def test_no_mask_is_given_twice_in_compiled_code() -> None:
        layer = Dropout(0.5, seed=0)
        layer(ones(2, 3))
        step = jax.jit(lambda state, x: layer.stateless_call([], [state], x, training=True))
        x = ones(20, 30)
        set_state(layer, layer.key, 2**32 - 1)
        last, (state,) = step(layer.seed_generator.state.value, x)
        assert_same_bits(array(last), mask_of(layer, x.shape, 2**32 - 1).apply(x))
        beyond, _ = step(state, x)
        assert not np.array_equal(array(beyond), mask_of(layer, x.shape, 0).apply(x))


# ---- the page ------------------------------------------------------------------------------------


def test_docstrings() -> None:
    for test in doctest.DocTestFinder(exclude_empty=True).find(dropfast.keras):
        run(test)


if BACKEND == "tensorflow":  # the default

    def test_the_pages_first_example_runs() -> None:
        page = Path(__file__).parents[2] / "docs" / "keras.md"
        assert "dropfast.keras.Dropout(" in examples_of(page)
        run(session_of(page))
