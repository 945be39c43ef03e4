"""The promise of dropfast.tensorflow to TensorFlow's programs: what tf.nn.dropout takes, TensorFlow 1's graphs too."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from expected import assert_same_bits
from in_tensorflow import DRAW, KEY, WAYS, array, each_road, each_way, noise
from processes import run_python

from dropfast import Mask
from dropfast.tensorflow import apply, dropout

v1 = tf.compat.v1


# ---- TensorFlow 1 --------------------------------------------------------------------------------


@each_road
def test_a_session(backend: str, portable: bool) -> None:
    x, mask = noise(5, 7), Mask((5, 7), 0.3, key=KEY, draw=2)
    with tf.Graph().as_default(), v1.Session() as session:
        place, key, draw = v1.placeholder(tf.float32, (None, 7)), v1.placeholder(tf.uint64), v1.placeholder(tf.int32)
        y = dropout(place, 0.3, seed=(key, draw), portable=portable)
        assert y.shape.as_list() == [None, 7]
        (dx,) = tf.gradients(y, place)
        got, gradient = session.run([y, dx], {place: x, key: KEY, draw: 2})
    assert_same_bits(got, mask.apply(x))
    assert_same_bits(gradient, mask.apply(np.ones_like(x)))


def test_a_session_draws_anew_in_each_run_and_repeats_with_its_seed() -> None:
    def runs() -> list[Any]:
        with tf.Graph().as_default(), v1.Session() as session:
            v1.set_random_seed(5)
            y = dropout(tf.ones((4, 50)), 0.5)
            return [session.run(y) for _ in range(3)]

    first, again = runs(), runs()
    assert len({y.tobytes() for y in first}) == 3
    assert_same_bits(np.stack(again), np.stack(first))


@pytest.mark.parametrize("control_flow", ["v1", "v2"])
def test_loops_and_branches_of_a_session(control_flow: str) -> None:
    def step(i: Any, y: Any) -> Any:
        return i + 1, dropout(y, 0.25, seed=(KEY, i))

    want = np.ones((5, 60), np.float32)
    for draw in range(3):
        want = Mask(want.shape, 0.25, key=KEY, draw=draw).apply(want)
    (v1.disable_control_flow_v2 if control_flow == "v1" else v1.enable_control_flow_v2)()
    try:
        with tf.Graph().as_default(), v1.Session() as session:
            x = tf.ones((5, 60))
            _, y = v1.while_loop(lambda i, y: i < 3, step, [0, x])
            z = v1.cond(tf.reduce_all(x > 0), lambda: dropout(x, 0.25, seed=(KEY, 0)), lambda: x)
            y, dx, z, dz = session.run([y, *tf.gradients(y, x), z, *tf.gradients(z, x)])
    finally:
        v1.enable_control_flow_v2()
    assert_same_bits(y, want)
    assert_same_bits(dx, want)
    assert_same_bits(z, Mask(want.shape, 0.25, key=KEY).apply(np.ones_like(want)))
    assert_same_bits(dz, z)


NOISE_SHAPES = {"entry": (None, 1), "vector": (5, 1), "all": (1, 1), "none": (5, 7)}


@each_road
@pytest.mark.parametrize("noise_shape", NOISE_SHAPES.values(), ids=NOISE_SHAPES)
def test_noise_shapes_of_a_session(noise_shape: Any, portable: bool) -> None:
    x = noise(5, 7)
    mask = Mask(x.shape, 0.3, key=KEY, noise_shape=noise_shape)
    with tf.Graph().as_default(), v1.Session() as session:
        place, shape = v1.placeholder(tf.float32), v1.placeholder(tf.int32)
        y = dropout(place, 0.3, noise_shape, seed=(KEY, 0), portable=portable)
        z = dropout(place, 0.3, shape, seed=(KEY, 0), portable=portable)
        y, z = session.run([y, z], {place: x, shape: mask.noise_shape})
    assert_same_bits(y, mask.apply(x))
    assert_same_bits(z, mask.apply(x))


FAULTS: dict[str, tuple[dict[str, Any], str]] = {
    "key": ({"key": -1}, r"key must be in \[0, 2\*\*64\), got\] \[-1"),
    "draw": ({"draw": 2**32}, r"draw must be in \[0, 2\*\*32\), got\] \[4294967296"),
    "rate": ({"rate": 1.5}, r"rate must be in \[0, 1\], got\] \[1.5"),
    "rate-nan": ({"rate": np.nan}, r"rate must be in \[0, 1\], got\] \[nan"),
    "noise_shape": (
        {"noise_shape": (2, 2)},
        r"noise_shape must have one entry an axis.* for the shape\] \[2 3\] \[got\] \[2 2\]",
    ),
    "noise_shape-short": ({"noise_shape": (1,)}, r"noise_shape must have one entry an axis.* \[2 3\] \[got\] \[1\]"),
}


@each_road
@pytest.mark.parametrize("mode", ["session", "function"])
@pytest.mark.parametrize(("bad", "message"), FAULTS.values(), ids=FAULTS)
def test_values_that_only_a_running_graph_sees(bad: dict[str, Any], message: str, mode: str, portable: bool) -> None:
    def call(x: Any, rate: Any, noise_shape: Any, key: Any, draw: Any) -> Any:
        return dropout(x, rate, noise_shape, seed=(key, draw), portable=portable)

    kinds = {"x": tf.float32, "rate": tf.float64, "noise_shape": tf.int64, "key": tf.int64, "draw": tf.int64}
    values = {"x": np.ones((2, 3)), "rate": 0.5, "noise_shape": (2, 3), "key": 1, "draw": 0, **bad}

    def in_session() -> None:
        with tf.Graph().as_default(), v1.Session() as session:
            places = {name: v1.placeholder(dtype) for name, dtype in kinds.items()}
            session.run(call(**places), {place: values[name] for name, place in places.items()})

    def in_function() -> None:
        signature = [tf.TensorSpec(None, dtype) for dtype in kinds.values()]
        tf.function(call, input_signature=signature)(*(tf.constant(values[name], kinds[name]) for name in kinds))

    with pytest.raises(tf.errors.InvalidArgumentError, match=message):
        {"session": in_session, "function": in_function}[mode]()


def test_a_saved_graph_is_read_where_dropfast_is(tmp_path: Path) -> None:
    with tf.Graph().as_default() as graph:
        dropout(v1.placeholder(tf.float32, (None, 7), name="x"), 0.5, seed=(KEY, DRAW), name="y")
    (tmp_path / "graph").write_bytes(graph.as_graph_def().SerializeToString())
    np.save(tmp_path / "want.npy", Mask((5, 7), 0.5, key=KEY, draw=DRAW).apply(np.ones((5, 7), np.float32)))
    read = """
import sys, numpy as np, tensorflow as tf
folder, door = sys.argv[1:]
if door:
    import dropfast.tensorflow
tf.compat.v1.disable_eager_execution()
with open(folder + "/graph", "rb") as file:
    graph = tf.compat.v1.GraphDef.FromString(file.read())
(y,) = tf.import_graph_def(graph, return_elements=["y/Dropfast>Dropout:0"], name="")
with tf.compat.v1.Session() as session:
    assert (session.run(y, {"x:0": np.ones((5, 7))}) == np.load(folder + "/want.npy")).all()
"""
    result = run_python(read, str(tmp_path), "door")
    assert result.returncode == 0, result.stderr
    result = run_python(read, str(tmp_path), "")
    assert result.returncode != 0
    assert "Op type not registered 'Dropfast>Dropout'" in result.stderr


# ---- what tf.nn.dropout takes --------------------------------------------------------------------


def test_name() -> None:
    with tf.Graph().as_default():
        x = tf.ones((2, 3))
        assert dropout(x, 0.5, name="first").op.name.startswith("first/")
        assert dropout(x, 0.5, None, None, "second", portable=True).op.name.startswith("second/")
        assert apply(Mask((2, 3), key=0), x, name="third").op.name.startswith("third/")
        assert dropout(x, 0.5).op.name.startswith("dropout/")


@each_road
@each_way
@pytest.mark.parametrize("dtype", [tf.float16, tf.bfloat16, tf.float32, tf.float64], ids=lambda dtype: dtype.name)
def test_a_rate_may_be_a_tensor(dtype: Any, way: Any, portable: bool) -> None:
    x = noise(3, 50)
    f = way(lambda x, rate: dropout(x, rate, seed=(KEY, 0), portable=portable))
    for rate in (0.0, 0.1, 0.5, 1.0):
        tensor = tf.constant(rate, dtype)
        assert_same_bits(array(f(tf.constant(x), tensor)), Mask(x.shape, float(tensor.numpy()), key=KEY).apply(x))


def test_a_new_rate_needs_no_new_trace_and_has_no_gradient() -> None:
    @tf.function
    def f(x: Any, rate: Any) -> Any:
        with tf.GradientTape() as tape:
            tape.watch((x, rate))
            y = dropout(x, rate, seed=(KEY, 0))
        return tape.gradient(y, (x, rate))

    for rate in (0.25, 0.5, 0.75):
        dx, d_rate = f(tf.ones((3, 50)), tf.constant(rate))
        assert_same_bits(array(dx), Mask((3, 50), rate, key=KEY).apply(np.ones((3, 50), np.float32)))
        assert d_rate is None
    assert f.experimental_get_tracing_count() == 1


def test_variables_as_rate_key_and_draw() -> None:
    x, rate, draw = noise(3, 50), tf.Variable(0.5), tf.Variable(3, dtype=tf.int64)
    want = Mask(x.shape, 0.5, key=KEY, draw=3).apply(x)
    for way in WAYS.values():
        assert_same_bits(array(way(lambda: dropout(tf.constant(x), rate, seed=(KEY, draw)))()), want)


@each_road
@each_way
def test_ragged_tensors(way: Any, portable: bool) -> None:
    x = tf.ragged.constant([[[1.0, 2.0], []], [], [[3.0, 4.0, 5.0], [6.0]]])
    y = way(lambda x: dropout(x, 0.5, seed=(KEY, 0), portable=portable))(x)
    assert isinstance(y, tf.RaggedTensor)
    assert [splits.numpy().tolist() for splits in y.nested_row_splits] == [[0, 2, 2, 4], [0, 2, 2, 5, 6]]
    assert_same_bits(array(y.flat_values), Mask(6, 0.5, key=KEY).apply(x.flat_values.numpy()))


def test_ragged_values_and_their_noise_shape() -> None:
    x = v1.ragged.constant_value([[1.0, 2.0], [3.0]], dtype=np.float32)
    y = dropout(x, 0.5, seed=(KEY, 0))
    assert_same_bits(array(y.flat_values), Mask(3, 0.5, key=KEY).apply(x.flat_values))
    with pytest.raises(ValueError, match=r"^noise_shape must be None for a ragged tensor, got \(1, None\)"):
        dropout(x, 0.5, noise_shape=(1, None))


# ---- gradients and transformations ---------------------------------------------------------------


@each_road
@each_way
def test_forward_mode_inside(way: Any, portable: bool) -> None:
    def tangents(x: Any) -> Any:
        with tf.autodiff.ForwardAccumulator(x, 2 * x) as accumulator:
            y = dropout(x, 0.3, seed=(KEY, 0), portable=portable)
        return accumulator.jvp(y)

    mask = Mask((3, 40), 0.3, key=KEY)
    assert_same_bits(array(way(tangents)(tf.ones((3, 40)))), mask.apply(np.full((3, 40), 2, np.float32)))


@each_road
def test_vectorized_map_and_jacobians(portable: bool) -> None:
    x = noise(6, 7)
    y = tf.vectorized_map(
        lambda a: dropout(a[0], 0.5, seed=(KEY, a[1]), portable=portable), (tf.constant(x), tf.range(6))
    )
    for i in range(6):
        assert_same_bits(array(y[i]), Mask(7, 0.5, key=KEY, draw=i).apply(x[i]))
    row = tf.constant(x[0])
    with tf.GradientTape() as tape:
        tape.watch(row)
        y = dropout(row, 0.5, seed=(KEY, 0), portable=portable)
    assert_same_bits(array(tape.jacobian(y, row)), np.diag(Mask(7, 0.5, key=KEY).apply(np.ones(7, np.float32))))


def test_replicas_have_masks_of_their_own() -> None:
    code = """
import tensorflow as tf
tf.config.set_logical_device_configuration(
    tf.config.list_physical_devices("CPU")[0], [tf.config.LogicalDeviceConfiguration()] * 2
)
import dropfast.tensorflow
strategy = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
def replica():
    x = tf.ones((4, 50))
    with tf.GradientTape() as tape:
        tape.watch(x)
        y = dropfast.tensorflow.dropout(x, 0.5)
    return y, tape.gradient(y, x)
y, dx = map(strategy.experimental_local_results, tf.function(lambda: strategy.run(replica))())
assert (y[0] == dx[0]).numpy().all() and (y[1] == dx[1]).numpy().all() and (y[0] != y[1]).numpy().any()
"""
    result = run_python(code)
    assert result.returncode == 0, result.stderr


# ---- memory --------------------------------------------------------------------------------------

PEAK = """
import sys
import tensorflow as tf, dropfast.tensorflow

def peak():
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith("VmHWM"))

def forward(x):
    for _ in range(10):
        x = dropout(x, 0.5)
    return x

def both(x):
    with tf.GradientTape() as tape:
        tape.watch(x)
        y = forward(x)
    return tape.gradient(y, x)

dropout = {"tf": tf.nn.dropout, "dropfast": dropfast.tensorflow.dropout}[sys.argv[1]]
if sys.argv[2] == "graph":
    forward = tf.function(forward, autograph=False)
both(tf.ones(10))
x = tf.ones(1 << 22)
before = peak()
both(x)
print((peak() - before) / (x.shape[0] >> 8))
"""


@pytest.mark.parametrize("way", WAYS)
def test_the_backward_pass_keeps_nothing_of_the_size_of_x(way: str) -> None:
    """Ten in a row need about three tensors at a time; TensorFlow's hold ten masks, or more, besides."""
    tensors = {}
    for which in ("tf", "dropfast"):
        result = run_python(PEAK, which, way)
        assert result.returncode == 0, result.stderr
        tensors[which] = float(result.stdout)
    assert tensors["dropfast"] < 5
    assert tensors["tf"] > 10
