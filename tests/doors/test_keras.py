"""The promise of dropfast.keras, on each backend of Keras in a process of its own: there is one for a process."""

import re
from importlib.util import find_spec
from pathlib import Path

import pytest
from processes import run_module, run_python

HERE = Path(__file__).parent
PATIENCE = 540  # seconds for what has a hundred tests in it
pytestmark = pytest.mark.timeout(PATIENCE + 60, method="thread")

BACKENDS = ("tensorflow", "torch", "jax", "numpy")

MAKE_A_MODEL = """
import sys
import warnings
import keras
import numpy as np
import dropfast.keras
# Keras itself asks for arrays in NumPy 1's way.
warnings.filterwarnings("ignore", "__array__ implementation doesn't accept a copy", DeprecationWarning)
model = keras.Sequential([keras.Input((50,)), dropfast.keras.Dropout(0.5, seed=11)])
for _ in range(2):
    model(np.ones((4, 50), np.float32), training=True)
model.save(sys.argv[1])
"""


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = str(tmp_path_factory.mktemp("keras") / "model.keras")
    result = run_python(MAKE_A_MODEL, path, env={"KERAS_BACKEND": "numpy"})
    assert result.returncode == 0, result.stderr
    return path


def run_tests(name: str, backend_of_keras: str, **env: str) -> None:
    result = run_module(
        "pytest",
        *("-q", "-p", "no:cacheprovider", str(HERE / f"keras_{name}.py")),
        env={"KERAS_BACKEND": backend_of_keras, **env},
        patience=PATIENCE,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    assert re.search(r"^\d+ passed in", result.stdout, re.MULTILINE), result.stdout  # and none skipped


@pytest.mark.parametrize("backend_of_keras", BACKENDS)
def test_layers(backend_of_keras: str, model: str) -> None:
    run_tests("layers", backend_of_keras, DROPFAST_TEST_MODEL=model)


@pytest.mark.parametrize("backend_of_keras", BACKENDS)
def test_draws(backend_of_keras: str) -> None:
    run_tests("draws", backend_of_keras)


@pytest.mark.parametrize("backend_of_keras", BACKENDS)
def test_models(backend_of_keras: str) -> None:
    run_tests("models", backend_of_keras)


PEAK = """
import warnings
import keras
import dropfast.keras
# Keras itself asks for arrays in NumPy 1's way.
warnings.filterwarnings("ignore", "__array__ implementation doesn't accept a copy", DeprecationWarning)

def peak():
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith("VmHWM"))

def both(layers, x):
    def forward(x):
        for layer in layers:
            x = layer(x, training=True)
        return x

    backend = keras.config.backend()
    if backend == "torch":
        x.requires_grad_(True)
        forward(x).backward(x.detach())
    elif backend == "jax":
        import jax
        y, backward = jax.vjp(forward, x)
        jax.block_until_ready(backward(y))
    else:
        import tensorflow as tf
        with tf.GradientTape() as tape:
            tape.watch(x)
            y = forward(x)
        tape.gradient(y, x)

kinds = dropfast.keras.Dropout, keras.layers.Dropout
models = [[kind(0.5, seed=seed) for seed in range(10)] for kind in kinds]
for layers in models:
    both(layers, keras.ops.ones((10,)))
x = keras.ops.ones((1 << 22,))
before = peak()
for layers in models:
    both(layers, x)
    print((peak() - before) / (1 << 14))
"""


@pytest.mark.parametrize("backend_of_keras", [backend for backend in BACKENDS if backend != "numpy"])
def test_the_backward_pass_keeps_nothing_of_the_size_of_x(backend_of_keras: str) -> None:
    """Ten layers in a row need a few tensors at a time; Keras' hold ten masks, or more, besides."""
    result = run_python(PEAK, env={"KERAS_BACKEND": backend_of_keras, "MALLOC_MMAP_THRESHOLD_": "100000"})
    assert result.returncode == 0, result.stderr
    ours, theirs = map(float, result.stdout.split())
    assert ours < 5
    assert theirs > 5


def test_a_backend_that_there_is_no_step_for_is_named() -> None:
    code = "import keras; keras.config.backend = lambda: 'openvino'; import dropfast.keras"
    result = run_python(code, env={"KERAS_BACKEND": "numpy"})
    words = f"ImportError: dropfast.keras needs a Keras backend of {', '.join(BACKENDS)}, got openvino"
    assert result.stderr.splitlines()[-1] == words


# What tf.recompute_grad might become, and what is gone then.
OTHER_RECOMPUTE_GRADS = {
    "inner": "lambda f: f",
    "kwargs": "outer",
}


@pytest.mark.parametrize("gone", OTHER_RECOMPUTE_GRADS)
def test_a_part_of_recompute_grad_that_is_gone_is_named_at_import(gone: str) -> None:
    code = f"""
import tensorflow as tf
def outer(f):
    def inner(*args):
        return f(*args)
    return inner
tf.recompute_grad = {OTHER_RECOMPUTE_GRADS[gone]}
import dropfast.keras
"""
    result = run_python(code, env={"KERAS_BACKEND": "tensorflow"})
    words = rf"ImportError: TensorFlow [\d.]+ lacks {gone} in tf\.recompute_grad, needed to repeat masks"
    assert re.fullmatch(words, result.stderr.splitlines()[-1]), result.stderr


#: What is otherwise here in Keras' own tests: the words of errors.
OTHERWISE = (
    "test_dropout_negative_rate",
    "test_dropout_rate_greater_than_one",
    "test_validate_noise_shape_invalid_type",
    "test_validate_noise_shape_negative_value",
    "test_validate_noise_shape_non_iterable",
    "test_validate_noise_shape_zero_value",
)
DROPOUT = ("layers/regularization/dropout_test.py", "layers/regularization/spatial_dropout_test.py")
#: Those of the rest that have dropout in them. (None of those of saving have.)
WITH_DROPOUT = (
    "test_training_arg_value_resolution",
    "test_quantize_unbuilt",
    "test_predict_dropout",
    "test_rng_updated_during_predict",
    "test_set_random_seed_with_seed_generator",
)
OTHERS = ("layers/layer_test.py", "models/model_test.py", "trainers/trainer_test.py", "utils/rng_utils_test.py")
#: Files, and which of their tests.
OWN = {
    "dropout": (DROPOUT, f"not ({' or '.join(OTHERWISE)})"),
    "cloning": (("models/cloning_test.py",), "test"),
    "others": (OTHERS, " or ".join(WITH_DROPOUT)),
}


@pytest.mark.parametrize("backend_of_keras", BACKENDS)
@pytest.mark.parametrize("of", OWN)
def test_kerass_own_tests(of: str, backend_of_keras: str, tmp_path: Path) -> None:
    """As Keras installs them, but with layers of ours."""
    (files, which), spec = OWN[of], find_spec("keras")
    assert spec is not None
    (tmp_path / "pytest.ini").write_text("[pytest]\n")
    result = run_module(
        "pytest",
        *("-q", "-p", "no:cacheprovider", "-p", "keras_own", "-W", "ignore", "-c", str(tmp_path / "pytest.ini")),
        *("-k", which),
        *(str(Path(str(spec.origin)).parent / "src" / file) for file in files),
        env={"KERAS_BACKEND": backend_of_keras, "PYTHONPATH": str(HERE.parent)},
        patience=PATIENCE,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    assert int(re.findall(r"(\d+) passed", result.stdout)[0]) >= 6, result.stdout
