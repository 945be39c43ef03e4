"""The promise of dropfast.tensorflow: dropfast's masks, eager and in tf.function, with gradients, or an error."""

import doctest
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from cases import DTYPES, MODES, RATES, Array, values
from expected import assert_same_bits
from in_tensorflow import DRAW, KEY, array, each_way, noise
from processes import run_python
from test_docs import examples_of, run, session_of

import dropfast.tensorflow
from dropfast import Mask
from dropfast.tensorflow import apply, dropout

ROOT = Path(__file__).parents[2]


def exactly(message: str) -> str:
    """The last line of a message: tf.function puts the place in the user's code before it."""
    return rf"(^|\n *)(\w+Error: )?{re.escape(message)}\s*$"


# ---- the bits ------------------------------------------------------------------------------------


@each_way
@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
def test_apply(backend: str, dtype: np.dtype[Any], way: Any) -> None:
    x = values((37, 61), dtype)
    for rate in RATES.values():
        mask = Mask(x.shape, rate, key=KEY, draw=DRAW)
        y = way(lambda x, mask=mask: apply(mask, x))(tf.constant(x))
        assert y.shape == x.shape
        assert_same_bits(array(y), mask.apply(x))


@each_way
@pytest.mark.parametrize("mode", MODES.values(), ids=MODES)
def test_modes(mode: Any, way: Any) -> None:
    x = noise(6, 5, 4, 7)
    mask = Mask(x.shape, 0.3, key=KEY, draw=DRAW, **mode(x.shape))
    assert_same_bits(array(way(lambda x: apply(mask, x))(tf.constant(x))), mask.apply(x))
    dropped = way(lambda x: dropout(x, 0.3, mask.noise_shape, seed=(KEY, DRAW)))(tf.constant(x))
    assert_same_bits(array(dropped), mask.apply(x))


@each_way
@pytest.mark.parametrize("shape", [(), (0,), (3, 0, 2), (1,), (5,), (2, 1, 3, 1, 2)], ids=str)
def test_shapes(shape: tuple[int, ...], way: Any) -> None:
    for dtype in DTYPES.values():
        x = np.ones(shape, dtype)
        y = way(lambda x: dropout(x, 0.5, seed=(KEY, DRAW)))(tf.constant(x))
        assert_same_bits(array(y), Mask(shape, 0.5, key=KEY, draw=DRAW).apply(x))


@each_way
def test_shards_have_the_bits_of_the_whole(way: Any) -> None:
    x = noise(64, 33)
    mask = Mask(x.shape, 0.5, key=KEY)
    shards = [
        way(lambda part, i=i: apply(mask.window((i, 0), (16, 33)), part))(tf.constant(x[i : i + 16]))
        for i in range(0, 64, 16)
    ]
    assert_same_bits(array(tf.concat(shards, 0)), mask.apply(x))


@each_way
def test_dropped_is_zero_even_for_inf_and_nan(way: Any) -> None:
    x = tf.constant([np.inf, -np.inf, np.nan, -1.0])
    assert_same_bits(array(way(lambda x: dropout(x, 1.0))(x)), np.zeros(4, np.float32))
    assert np.isnan(array(way(lambda x: dropout(x, 0.0))(x))[2])


def test_arrays_and_variables_are_taken_as_tensorflow_takes_them() -> None:
    x = noise(3, 4)
    mask = Mask(x.shape, 0.5, key=KEY)
    for given in (x, tf.Variable(x), x.tolist()):
        assert_same_bits(array(apply(mask, given)), mask.apply(x))


def test_inputs_are_not_written_to_and_outputs_are_aligned() -> None:
    for n in (1, 3, 1000, 300_001):
        for dtype in DTYPES.values():
            x = tf.ones((n,), dtype)
            y = dropout(x, 0.5)
            assert bool(tf.reduce_all(x == 1))
            assert np.asarray(y).ctypes.data % 64 == 0  # TensorFlow's kernels count on it


# ---- gradients -----------------------------------------------------------------------------------


@each_way
@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
def test_gradient_is_the_same_mask(dtype: np.dtype[Any], way: Any) -> None:
    x, dy = noise(9, 40, dtype=dtype), noise(9, 40, dtype=dtype) + dtype.type(1)
    mask = Mask(x.shape, 0.3, key=KEY)

    def gradient(x: Any) -> Any:
        with tf.GradientTape() as tape:
            tape.watch(x)
            y = apply(mask, x)
        return tape.gradient(y, x, output_gradients=tf.constant(dy))

    assert_same_bits(array(way(gradient)(tf.constant(x))), mask.apply(dy))


@each_way
def test_gradient_of_dropout_with_a_random_key(way: Any) -> None:
    def both(x: Any) -> Any:
        with tf.GradientTape() as tape:
            tape.watch(x)
            y = dropout(x, 0.5)
        return y, tape.gradient(y, x)

    y, dx = way(both)(tf.ones((20, 30)))
    assert 0 < int(tf.math.count_nonzero(y)) < 600
    assert_same_bits(array(dx), array(y))


@each_way
def test_second_order(way: Any) -> None:
    x = noise(4, 50)
    mask = Mask(x.shape, 0.5, key=KEY)  # a scale of 2, so that all products are exact

    def second(x: Any) -> Any:
        with tf.GradientTape() as outer:
            outer.watch(x)
            with tf.GradientTape() as inner:
                inner.watch(x)
                y = apply(mask, x)
                total = tf.reduce_sum(y * y)
            dx = inner.gradient(total, x)
        return dx, outer.gradient(dx, x)

    dx, ddx = way(second)(tf.constant(x))
    np.testing.assert_array_equal(dx, 8 * np.where(mask.keep(), x, 0))
    np.testing.assert_array_equal(ddx, 8 * mask.keep().astype(np.float32))


@each_way
def test_forward_mode(way: Any) -> None:
    x = tf.ones((3, 40))
    mask = Mask(x.shape, 0.3, key=KEY)
    with tf.autodiff.ForwardAccumulator(x, x) as accumulator:
        y = way(lambda x: apply(mask, x))(x)
    assert_same_bits(array(accumulator.jvp(y)), mask.apply(np.ones((3, 40), np.float32)))


def test_sparse_upstream_gradients() -> None:
    x, mask = tf.ones((5, 8)), Mask((5, 8), 0.5, key=KEY)
    with tf.GradientTape() as tape:
        tape.watch(x)
        y = tf.gather(apply(mask, x), [1, 3])
    rows = np.zeros((5, 8), np.float32)
    rows[[1, 3]] = 1
    assert_same_bits(array(tape.gradient(y, x)), mask.apply(rows))


# ---- where masks come from -----------------------------------------------------------------------


@each_way
def test_set_seed_makes_runs_repeat(way: Any) -> None:
    def three() -> list[Array]:
        tf.random.set_seed(5)
        f = way(lambda x: dropout(x, 0.5))
        return [array(f(tf.ones((4, 50)))) for _ in range(3)]

    first, again = three(), three()
    for got, want in zip(again, first, strict=True):
        assert_same_bits(got, want)
    assert len({y.tobytes() for y in first}) == 3  # each execution its own mask


def test_two_layers_of_one_graph_have_masks_of_their_own() -> None:
    y, z = tf.function(lambda x: (dropout(x, 0.5), dropout(x, 0.5)))(tf.ones((4, 50)))
    assert not np.array_equal(y, z)


@each_way
def test_an_int_is_the_rng_of_dropfast(way: Any) -> None:
    x = noise(3, 50)
    f = way(lambda x: dropout(x, 0.3, seed=3))
    for _ in range(2):  # and the same mask each time
        assert_same_bits(array(f(tf.constant(x))), dropfast.dropout(x, 0.3, rng=3))


@each_way
@pytest.mark.parametrize("dtype", [tf.int32, tf.int64, tf.uint32, tf.uint64], ids=lambda dtype: dtype.name)
def test_key_and_draw_may_be_tensors(dtype: Any, way: Any) -> None:
    x, key, draw = noise(3, 50), dtype.max, min(dtype.max, 2**32 - 1)
    want = Mask(x.shape, 0.3, key=key, draw=draw).apply(x)
    pair = tf.constant(key, dtype), tf.constant(draw, dtype)
    assert_same_bits(array(way(lambda x, *pair: dropout(x, 0.3, seed=pair))(tf.constant(x), *pair)), want)
    assert_same_bits(array(way(lambda x, pair: dropout(x, 0.3, seed=pair))(tf.constant(x), tf.stack(pair))), want)


def test_nothing_is_traced_anew_for_new_keys_draws_and_batches() -> None:
    traces = []

    @tf.function(input_signature=[tf.TensorSpec((None, 20)), tf.TensorSpec((), tf.uint64), tf.TensorSpec((), tf.int64)])
    def f(x: Any, key: Any, draw: Any) -> Any:
        traces.append(1)
        y = dropout(x, 0.5, noise_shape=(None, 1), seed=(key, draw))
        assert y.shape == (None, 20)
        return y

    for batch, key, draw in [(3, 1, 0), (4, KEY, 0), (3, 1, 2**32 - 1)]:
        x = noise(batch, 20)
        want = Mask(x.shape, 0.5, key=key, draw=draw, shared_axes=1).apply(x)
        assert_same_bits(array(f(tf.constant(x), tf.constant(key, tf.uint64), draw)), want)
    assert len(traces) == 1


def test_unknown_shapes() -> None:
    mask = Mask((4, 9), 0.5, key=KEY)
    f = tf.function(lambda x: apply(mask, x), input_signature=[tf.TensorSpec(None)])
    x = noise(4, 9)
    assert_same_bits(array(f(tf.constant(x))), mask.apply(x))
    with pytest.raises(
        tf.errors.InvalidArgumentError, match=r"Shape of tensor .* \[5,9\] is not compatible .* \[4,9\]"
    ):
        f(tf.ones((5, 9)))


# As TensorFlow's users write it, for x of the shape (3, 5, 4).
NOISE_SHAPES: dict[str, Callable[[Any], Any]] = {
    "list": lambda x: [None, 1, 4],
    "array": lambda x: np.array([3, 1, 4]),
    "TensorShape": lambda x: tf.TensorShape((None, 1, 4)),
    "tensor": lambda x: tf.constant([3, 1, 4]),
    "computed": lambda x: tf.concat([tf.shape(x)[:1], [1, 4]], 0),
    "computed-entries": lambda x: (tf.shape(x)[0], 1, None),
}


@each_way
@pytest.mark.parametrize("noise_shape", NOISE_SHAPES.values(), ids=NOISE_SHAPES)
def test_noise_shape_as_tensorflow_takes_it(noise_shape: Any, way: Any) -> None:
    x = noise(3, 5, 4)
    y = way(lambda x: dropout(x, 0.5, noise_shape(x), seed=(KEY, 0)))(tf.constant(x))
    assert_same_bits(array(y), Mask(x.shape, 0.5, key=KEY, shared_axes=1).apply(x))


# ---- in TensorFlow's programs --------------------------------------------------------------------


# TensorFlow's AutoGraph writes notes into the nodes of ast, of which Python 3.13 warns.
@pytest.mark.filterwarnings("ignore:.* got an unexpected keyword argument '___pyct_anno':DeprecationWarning")
def test_loops_and_their_gradients() -> None:
    @tf.function
    def f(x: Any) -> Any:
        with tf.GradientTape() as tape:
            tape.watch(x)
            y = x
            for step in tf.range(3):
                y = dropout(y, 0.25, seed=(KEY, step))
        return y, tape.gradient(y, x)

    want = np.ones((5, 60), np.float32)
    for step in range(3):
        want = Mask(want.shape, 0.25, key=KEY, draw=step).apply(want)
    y, dx = f(tf.ones((5, 60)))
    assert_same_bits(array(y), want)
    assert_same_bits(array(dx), want)


def test_branches() -> None:
    f = tf.function(lambda x, training: tf.cond(training, lambda: dropout(x, 0.5, seed=(KEY, 0)), lambda: x))
    x = noise(3, 20)
    assert_same_bits(array(f(tf.constant(x), tf.constant(True))), Mask(x.shape, 0.5, key=KEY).apply(x))
    assert_same_bits(array(f(tf.constant(x), tf.constant(False))), x)


def test_data_pipelines() -> None:
    x = noise(50, 30)
    rows = tf.data.Dataset.from_tensor_slices((x, np.arange(50)))
    rows = rows.map(lambda row, i: dropout(row, 0.5, seed=(KEY, i)), num_parallel_calls=4)
    for i, row in enumerate(rows):
        assert_same_bits(array(row), Mask(30, 0.5, key=KEY, draw=i).apply(x[i]))


def test_recomputed_gradients_see_the_same_mask() -> None:
    @tf.recompute_grad
    def block(x: Any) -> Any:
        return dropout(x, 0.5, seed=(KEY, 0)) ** 2

    x = tf.ones((4, 50))
    with tf.GradientTape() as tape:
        tape.watch(x)
        y = block(x)
    np.testing.assert_array_equal(tape.gradient(y, x), 2 * y)


def test_a_custom_training_loop() -> None:
    weights = tf.Variable(tf.ones((6, 1)))
    x, masks = noise(8, 6), [Mask((8, 6), 0.5, key=KEY, draw=step) for step in range(3)]

    @tf.function
    def step(x: Any, draw: Any) -> None:
        with tf.GradientTape() as tape:
            loss = tf.reduce_sum(dropout(x, 0.5, seed=(KEY, draw)) @ weights)
        weights.assign_sub(tape.gradient(loss, weights))

    for draw in range(3):
        step(tf.constant(x), tf.constant(draw))
    np.testing.assert_allclose(weights, 1 - sum(mask.apply(x).sum(0) for mask in masks)[:, None], rtol=1e-5, atol=1e-5)


# ---- what is refused -----------------------------------------------------------------------------

X = tf.ones((2, 3))

ERRORS: dict[str, tuple[dict[str, Any], type[Exception], str]] = {
    "dtype": (
        {"x": tf.ones((2, 3), tf.int32)},
        TypeError,
        "x must have dtype float16, bfloat16, float32 or float64 in native byte order, got int32",
    ),
    "rate": ({"rate": 1.5}, ValueError, "rate must be in [0, 1], got 1.5"),
    "rate-integer-tensor": (
        {"rate": tf.constant(1)},
        TypeError,
        "rate must be a real number in [0, 1] or a scalar tensor of floats, got "
        "<tf.Tensor: shape=(), dtype=int32, numpy=1>",
    ),
    "rate-vector": (
        {"rate": tf.constant([0.5])},
        TypeError,
        "rate must be a real number in [0, 1] or a scalar tensor of floats, got "
        "<tf.Tensor: shape=(1,), dtype=float32, numpy=array([0.5], dtype=float32)>",
    ),
    "rate-list": ({"rate": [0.5]}, TypeError, "rate must be a real number in [0, 1], got list"),
    "portable": ({"portable": 1}, TypeError, "portable must be True or False, got int"),
    "seed": ({"seed": "1"}, TypeError, "seed must be None, an integer or a pair (key, draw), got '1'"),
    "seed-negative": ({"seed": -1}, ValueError, "seed must be in [0, 2**64), got -1"),
    "seed-three": (
        {"seed": (1, 2, 3)},
        TypeError,
        "seed must be None, an integer or a pair (key, draw), got (1, 2, 3)",
    ),
    "key": ({"seed": (2**64, 0)}, ValueError, f"key must be in [0, 2**64), got {2**64}"),
    "key-float": ({"seed": (1.5, 0)}, TypeError, "key must be an integer, got float"),
    "draw": ({"seed": (0, -1)}, ValueError, "draw must be in [0, 2**32), got -1"),
    "draw-float": (
        {"seed": (0, tf.constant(1.5))},
        TypeError,
        "draw must be an integer or a scalar integer tensor, got <tf.Tensor: shape=(), dtype=float32, numpy=1.5>",
    ),
    "seed-boolean": ({"seed": True}, TypeError, "seed must be an integer, got bool"),
    "key-boolean": ({"seed": (True, 0)}, TypeError, "key must be an integer, got bool"),
    "draw-boolean": ({"seed": (0, np.True_)}, TypeError, "draw must be an integer, got bool"),
    "key-boolean-tensor": (
        {"seed": (tf.constant(True), 0)},
        TypeError,
        "key must be an integer or a scalar integer tensor, got <tf.Tensor: shape=(), dtype=bool, numpy=True>",
    ),
    "noise_shape-number": ({"noise_shape": 1}, TypeError, "noise_shape must be a sequence of integers and None, got 1"),
    **{
        f"noise_shape-{name}": (
            {"noise_shape": bad},
            TypeError,
            f"noise_shape must be a sequence of integers and None, got {bad!r}",
        )
        for name, bad in {
            "boolean": (True, None),
            "boolean-tensor": tf.constant([True, True]),
            "boolean-tensor-inside": (tf.constant(True), None),
            "float-tensor": tf.constant([1.0, 3.0]),
            "float-tensor-inside": (None, tf.constant(1.0)),
        }.items()
    },
    "noise_shape": (
        {"noise_shape": (2, 2)},
        ValueError,
        "noise_shape must have one entry an axis, each 1 (shared), the axis's length or None (full); "
        "for the shape (2, 3) got (2, 2)",
    ),
}


@each_way
@pytest.mark.parametrize(("arguments", "kind", "message"), ERRORS.values(), ids=ERRORS)
def test_errors(arguments: dict[str, Any], kind: type[Exception], message: str, way: Any) -> None:
    with pytest.raises(kind, match=exactly(message)):
        way(lambda: dropout(**{"x": X, "rate": 0.5, **arguments}))()


@pytest.mark.parametrize("bad", [True, 1.5, "3"])
def test_a_noise_shape_of_tensors_and_something_else(bad: Any) -> None:
    """In a graph they meet in one tensor, which would make an integer of anything."""
    message = rf"noise_shape must be a sequence of integers and None, got \(<tf.Tensor .*>, {bad!r}\)"
    with pytest.raises(TypeError, match=message):
        tf.function(lambda n: dropout(X, 0.5, noise_shape=(n, bad)))(tf.constant(1))


@each_way
def test_errors_of_apply(way: Any) -> None:
    with pytest.raises(ValueError, match=exactly("x must have the mask's shape (2, 4), got (2, 3)")):
        way(lambda x: apply(Mask((2, 4), key=0), x))(X)
    with pytest.raises(TypeError, match=exactly("mask must be a dropfast.Mask, got ndarray")):
        way(lambda x: apply(np.ones((2, 3)), x))(X)


@pytest.mark.parametrize(("key", "draw", "name"), [(-1, 0, "key"), (0, -1, "draw"), (0, 2**32, "draw")])
def test_values_that_only_a_running_graph_sees(key: int, draw: int, name: str) -> None:
    f = tf.function(lambda x, key, draw: dropout(x, 0.5, seed=(key, draw)))
    with pytest.raises(tf.errors.InvalidArgumentError, match=rf"{name} must be in \[0, 2\*\*\d+\), got"):
        f(X, tf.constant(key, tf.int64), tf.constant(draw, tf.int64))


def test_meshes_are_refused() -> None:
    mesh = tf.experimental.dtensor.create_mesh([("batch", 1)], devices=["CPU:0"])
    x = tf.experimental.dtensor.copy_to_mesh(X, tf.experimental.dtensor.Layout.replicated(mesh, rank=2))
    with pytest.raises(ValueError, match=r"^x must be on a CPU, a GPU or a TPU, got a tensor on .*CUSTOM:0"):
        dropout(x, 0.5)


def test_xla_around_what_was_traced_before_is_tensorflows_error() -> None:
    inner = tf.function(lambda x: dropout(x, 0.5))
    inner(X)
    with pytest.raises(tf.errors.InvalidArgumentError, match=r"unsupported operations.*Dropfast>Dropout"):
        tf.function(lambda x: inner(x) + 1, jit_compile=True)(X)


class Model(tf.Module):  # type: ignore[misc,unused-ignore]
    @tf.function(input_signature=[tf.TensorSpec((None, 3))])
    def infer(self, x: Any) -> Any:
        return 2 * x


class Trained(Model):
    @tf.function(input_signature=[tf.TensorSpec((None, 3))])
    def train(self, x: Any) -> Any:
        return dropout(x, 0.5)


@pytest.mark.parametrize("traced", [False, True], ids=["not-yet-traced", "traced"])
def test_a_mask_cannot_be_exported(tmp_path: Path, traced: bool) -> None:
    model = Trained()
    if traced:
        model.train(X)
    with pytest.raises(
        (AssertionError, KeyError), match=r"a dropfast mask is .* cannot be exported: portable=True makes one that can"
    ):
        tf.saved_model.save(model, tmp_path / "model")


def test_what_has_no_mask_can_be_exported(tmp_path: Path) -> None:
    model = Trained()
    model.train(X)
    served = tf.Module()
    served.infer = model.infer
    tf.saved_model.save(served, tmp_path / "model")
    loaded = tf.saved_model.load(tmp_path / "model")
    assert_same_bits(array(loaded.infer(X)), 2 * np.ones((2, 3), np.float32))


# ---- the house -----------------------------------------------------------------------------------


def test_importing_it_starts_nothing() -> None:
    code = """
import tensorflow as tf
import dropfast.tensorflow
tf.config.set_logical_device_configuration(  # an error once TensorFlow has begun
    tf.config.list_physical_devices("CPU")[0], [tf.config.LogicalDeviceConfiguration()] * 2
)
with tf.device("CPU:1"):
    assert dropfast.tensorflow.dropout(tf.ones(3), 1.0).numpy().tolist() == [0, 0, 0]
"""
    result = run_python(code)
    assert result.returncode == 0, result.stderr


def test_the_pages_first_example_runs() -> None:
    page = ROOT / "docs" / "tensorflow.md"
    assert "dropfast.tensorflow.dropout(" in examples_of(page)
    run(session_of(page))


def test_docstrings() -> None:
    for test in doctest.DocTestFinder(exclude_empty=True).find(dropfast.tensorflow):
        run(test)
