"""The promise of dropfast.keras, on each backend of Keras in a process of its own: there is one for a process."""

import re
from pathlib import Path

import pytest
from processes import run_module, run_python

HERE = Path(__file__).parent
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


@pytest.mark.parametrize("backend_of_keras", BACKENDS)
def test_layers(backend_of_keras: str, model: str) -> None:
    result = run_module(
        "pytest",
        *("-q", "-p", "no:cacheprovider", str(HERE / "keras_layers.py")),
        env={"KERAS_BACKEND": backend_of_keras, "DROPFAST_TEST_MODEL": model},
    )
    assert result.returncode == 0, result.stdout + result.stderr
    assert re.search(r"^\d+ passed in", result.stdout, re.MULTILINE), result.stdout  # and none skipped
