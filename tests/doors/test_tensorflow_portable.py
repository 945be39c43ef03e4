"""The promise that masks are the same where the kernels are not: under XLA, on other devices, in a SavedModel."""

import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from cases import DTYPES, Array
from expected import assert_same_bits
from in_tensorflow import DRAW, KEY, array, noise

from dropfast import Mask
from dropfast.tensorflow import _roads, apply, dropout

PAGE = Path(__file__).parents[2] / "docs" / "tensorflow.md"
XLA = {"autograph": False, "jit_compile": True}

# How the portable text is reached on a CPU. In eager mode TensorFlow runs it as a graph.
WAYS: dict[str, Callable[[Any], Any]] = {
    "eager": lambda f: lambda x: f(x, portable=True),
    "graph": lambda f: tf.function(lambda x: f(x, portable=True), autograph=False),
    "xla": lambda f: tf.function(lambda x: f(x, portable=False), **XLA),
}
each_way = pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)


def with_gradient(f: Any) -> Any:
    def both(x: Any, portable: bool) -> Any:
        with tf.GradientTape() as tape:
            tape.watch(x)
            y = f(x, portable)
        return y, tape.gradient(y, x, output_gradients=x + 1)

    return both


def assert_mask(way: Any, mask: Mask, x: Array) -> None:
    y, dx = way(with_gradient(lambda x, portable: apply(mask, x, portable=portable)))(tf.constant(x))
    assert_same_bits(array(y), mask.apply(x))
    assert_same_bits(array(dx), mask.apply(x + x.dtype.type(1)))


# ---- the bits ------------------------------------------------------------------------------------


@each_way
@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
def test_dtypes(dtype: np.dtype[Any], way: Any) -> None:
    assert_mask(way, Mask((37, 61), 0.25, key=KEY, draw=DRAW), noise(37, 61, dtype=dtype))


@each_way
@pytest.mark.parametrize("rate", [0.0, 2.0**-32, 0.1, 1.0])
def test_rates(rate: float, way: Any) -> None:
    assert_mask(way, Mask((3, 300), rate, key=KEY, draw=DRAW), noise(3, 300))


@each_way
@pytest.mark.parametrize("shared_axes", [(0,), (1,), (0, 2), (0, 1, 2)], ids=str)
def test_shared_axes_and_windows(shared_axes: tuple[int, ...], way: Any) -> None:
    x, mask = noise(6, 5, 70), Mask((6, 5, 70), 0.5, key=KEY, shared_axes=shared_axes)
    assert_mask(way, mask, x)
    assert_mask(way, mask.window((2, 1, 3), (3, 4, 60)), x[2:5, 1:, 3:63])


@each_way
def test_windows_of_big_masks(way: Any) -> None:
    assert_mask(way, Mask((2**30, 2**12), 0.5, key=KEY).window((2**29 + 1, 77), (2, 150)), noise(2, 150))


@each_way
def test_dropped_is_zero_even_for_inf_and_nan(way: Any) -> None:
    x = tf.constant([np.inf, -np.inf, np.nan, -1.0])
    y = way(lambda x, portable: dropout(x, 1.0, portable=portable))(x)
    assert_same_bits(array(y), np.zeros(4, np.float32))


def test_everything_may_be_data_under_xla() -> None:
    @tf.function(**XLA)
    def f(x: Any, rate: Any, key: Any, draw: Any) -> Any:
        return dropout(x, rate, (None, 1), seed=(key, draw))

    x = noise(4, 9)
    for rate, key, draw in [(0.1, KEY, DRAW), (0.5, 7, 0), (1.0, 7, 1)]:
        y = f(x, tf.constant(rate, tf.float64), tf.constant(key, tf.uint64), tf.constant(draw, tf.int64))
        assert_same_bits(array(y), Mask(x.shape, rate, key=key, draw=draw, shared_axes=1).apply(x))
    assert f.experimental_get_tracing_count() == 1


@pytest.mark.parametrize("traced", ["for-xla", "before"])
def test_a_rate_that_is_data_compiles_for_large_arrays(traced: str) -> None:
    """With 32 planes, each word of which XLA might compute again for each of its bits, and for each plane above it."""
    part = tf.function(lambda x, rate: dropout(x, rate, seed=(KEY, DRAW), portable=True), autograph=False)
    x, rate = noise(1024, 1024), tf.constant(0.1, tf.float64)
    if traced == "before":
        part = part.get_concrete_function(x, rate)
    y = tf.function(lambda x, rate: part(x, rate), **XLA)(tf.constant(x), rate)
    assert_same_bits(array(y), Mask(x.shape, 0.1, key=KEY, draw=DRAW).apply(x))


def test_a_noise_shape_that_does_not_fit_is_an_error_under_xla() -> None:
    """XLA leaves out assertions; but nothing comes out in another shape."""
    f = tf.function(
        lambda x, n: dropout(x, 0.5, tf.stack([n, 3])),
        **XLA,
        input_signature=[tf.TensorSpec((None, 3)), tf.TensorSpec((), tf.int32)],
    )
    with pytest.raises((tf.errors.InvalidArgumentError, tf.errors.UnimplementedError)):
        f(tf.ones((1, 3)), 5)


def test_each_execution_has_its_own_mask() -> None:
    for way in WAYS.values():
        f = way(with_gradient(lambda x, portable: dropout(x, 0.5, portable=portable)))
        x = tf.ones((4, 50))
        (y, dx), (z, _) = f(x), f(x)
        assert_same_bits(array(dx), array(y) * 2)
        assert (array(y) != array(z)).any()


# ---- where it runs -------------------------------------------------------------------------------


def road(f: Any) -> str:
    """Which of the two a graph holds."""
    graph = tf.function(f, autograph=False).get_concrete_function(tf.TensorSpec((2, 3))).graph
    names = {op.type for op in graph.get_operations()}
    return "kernels" if "Dropfast>Dropout" in names else "portable" if "RightShift" in names else "neither"


def road_in_session(f: Any) -> str:
    with tf.Graph().as_default() as graph:
        f(tf.ones((2, 3)))
    return "kernels" if "Dropfast>Dropout" in {op.type for op in graph.get_operations()} else "portable"


def road_of_device(kind: str) -> str:
    return "kernels" if _roads._has_kernels(f"/job:localhost/replica:0/task:0/device:{kind}:0") else "portable"


def road_of_placement(monkeypatch: pytest.MonkeyPatch, kind: str) -> str:
    """By force, where TensorFlow has CPUs alone: the graph has both, and the device of the call says which."""
    with monkeypatch.context() as patch:
        patch.setattr(_roads, "_has_other_devices", lambda: True)
        f = tf.function(lambda x: dropout(x, 0.5, seed=(KEY, 0)), autograph=False).get_concrete_function(
            tf.TensorSpec((2, 3))
        )
    (choice,) = (op for op in f.graph.get_operations() if op.type in ("Case", "StatelessCase"))
    (index,) = (op for op in f.graph.get_operations() if op.type == "DeviceIndex")
    kinds = [name.decode() for name in index.get_attr("device_names")]
    branch = choice.get_attr("branches")[kinds.index(kind) if kind in kinds else len(kinds)].name
    names = {op.type for op in f.graph._get_function(branch).graph.get_operations()}
    x = noise(2, 3)
    assert_same_bits(array(f(tf.constant(x))), Mask((2, 3), 0.5, key=KEY).apply(x))
    return "kernels" if "Dropfast>Dropout" in names else "portable"


def road_of_export(tmp_path: Path, portable: bool) -> str:
    model = tf.Module()
    model.f = tf.function(lambda x: dropout(x, 0.5, portable=portable), input_signature=[tf.TensorSpec((2, 3))])
    try:
        tf.saved_model.save(model, tmp_path / str(portable))
    except (AssertionError, KeyError) as error:
        assert "portable=True makes one that can" in str(error)  # noqa: PT017
        return "refused"
    return "portable"


def test_where_it_runs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    table = re.findall(r"^\| (.*?) \| (.*?) \| (.*?) \|$", PAGE.read_text(), re.MULTILINE)
    rows = {name: (cpu, other) for name, cpu, other in table}
    both = {kind: road_of_placement(monkeypatch, kind) for kind in ("CPU", "GPU")}
    here = road(lambda x: dropout(x, 0.5)), road_in_session(lambda x: dropout(x, 0.5))
    assert here == (both["CPU"], both["CPU"])
    asked = road(lambda x: dropout(x, 0.5, portable=True))
    found = {
        "eager": (road_of_device("CPU"), road_of_device("GPU")),
        "`tf.function`, and TensorFlow 1's graphs": (both["CPU"], both["GPU"]),
        "`tf.function(jit_compile=True)`": ("portable", "portable"),
        "`portable=True`": (asked, asked),
        "a SavedModel": (road_of_export(tmp_path, False),) * 2,
        "a SavedModel, with `portable=True`": (road_of_export(tmp_path, True),) * 2,
    }
    assert {name: rows.get(name) for name in found} == found


# ---- SavedModel ----------------------------------------------------------------------------------

SERVE = """
import importlib.util, sys
import numpy as np, tensorflow as tf
assert importlib.util.find_spec("dropfast") is None
model, x, want = tf.saved_model.load(sys.argv[1] + "/model"), *np.load(sys.argv[1] + "/arrays.npy")
x = tf.constant(x)
with tf.GradientTape() as tape:
    tape.watch(x)
    y = model.train(x, tf.constant(3, tf.int64))
np.testing.assert_array_equal(y, want)
np.testing.assert_array_equal(tape.gradient(y, x) * x, want)
assert (model.draw(x).numpy() != model.draw(x).numpy()).any()
"""


def test_a_saved_model_is_served_without_dropfast(tmp_path: Path) -> None:
    class Model(tf.Module):  # type: ignore[misc,unused-ignore]
        @tf.function(input_signature=[tf.TensorSpec((None, 60)), tf.TensorSpec((), tf.int64)])
        def train(self, x: Any, draw: Any) -> Any:
            return dropout(x, 0.25, seed=(KEY, draw), portable=True)

        @tf.function(input_signature=[tf.TensorSpec((None, 60))])
        def draw(self, x: Any) -> Any:
            return dropout(x, 0.25, portable=True)

    tf.saved_model.save(Model(), tmp_path / "model")
    x = np.ones((5, 60), np.float32)
    np.save(tmp_path / "arrays.npy", np.stack([x, Mask(x.shape, 0.25, key=KEY, draw=3).apply(x)]))
    # An environment of the same packages without this one; -S, or an editable installation would still be found.
    packages = tmp_path / "packages"
    packages.mkdir()
    for folder in filter(lambda path: path.name.endswith("-packages"), map(Path, sys.path)):
        for entry in folder.iterdir():
            if "dropfast" not in entry.name and not (packages / entry.name).exists():
                (packages / entry.name).symlink_to(entry)
    result = subprocess.run(
        [sys.executable, "-S", "-P", "-c", SERVE, str(tmp_path)],
        env={**os.environ, "PYTHONPATH": str(packages)},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert result.returncode == 0, result.stderr
