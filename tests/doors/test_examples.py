"""The examples run as examples/README.md says, small, each in a process of its own."""

import json
import math
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from processes import run_python

EXAMPLES = Path(__file__).parent.parent.parent / "examples"
PATIENCE = 300  # seconds


def run(name: str, *args: str, cwd: Path, status: int = 0) -> str:
    """Run an example as a user would, and return what it printed, or what went wrong if that is meant."""
    done = subprocess.run(
        [sys.executable, "-W", "error", str(EXAMPLES / name), *args],
        cwd=cwd,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    assert done.returncode == status, done.stderr
    return done.stderr if status else done.stdout


def test_dask_large_array(tmp_path: Path) -> None:
    """64 chunks in the memory of a few."""
    printed = run("dask_large_array.py", "--gib", "0.5", "--chunk-mib", "8", cwd=tmp_path)
    assert "131,072 x 1,024 float32: 0.5 GiB in 64 chunks" in printed
    assert "100% Completed" in printed
    assert "equal those of NumPy: True" in printed
    peak, before = map(int, re.findall(r"peak memory (\d+) MiB, (\d+) MiB", printed)[0])
    assert peak - before < 128


# ---- the CNN -------------------------------------------------------------------------------------

CNNS = {"cnn_torch": "torch.nn.Dropout", "cnn_keras": "keras.layers.Dropout"}


@pytest.mark.parametrize("name", CNNS)
def test_cnn(name: str, tmp_path: Path) -> None:
    printed = run(f"{name}.py", "--steps", "6", "--out", "curves.png", cwd=tmp_path)
    assert "training" in printed  # the progress bar
    for label in ("dropfast, per sample", "dropfast, shared", CNNS[name]):
        (row,) = re.findall(rf"^{re.escape(label)} +(\S+)% +(\S+) +(\S+) +(\S+) ms +(\S+) ms$", printed, re.MULTILINE)
        accuracy, test_loss, train_loss, alone, step = map(float, row)
        assert accuracy > 50  # guessing gives 10
        assert 0 < test_loss < 2
        assert 0 < train_loss < 2
        assert 0 < alone < step
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("name", CNNS)
def test_a_picture_that_cannot_be_written_is_refused_at_once(name: str, tmp_path: Path) -> None:
    words = run(f"{name}.py", "--out", "missing/curves.png", cwd=tmp_path, status=2)
    assert "--out must be a file that can be written, got missing/curves.png: No such file or directory" in words


NETWORKS = """
import json, sys
import numpy as np
import EXAMPLE as example

def weights(network):
    if hasattr(network, "model"):
        return network.model.get_weights()
    return [weight.detach().numpy() for weight in network.layers.parameters()]

networks = [weights(example.Network(dropout, 3)) for dropout in example.DROPOUTS]
print(json.dumps({
    "dropouts": len(networks),
    "shapes": [weight.shape for weight in networks[0]],
    "same": all(np.array_equal(a, b) for network in networks for a, b in zip(network, networks[0], strict=True)),
    "glorot": [float(abs(weight).max()) for weight in networks[0]],
    "another seed": not np.array_equal(weights(example.Network("own", 4))[0], networks[0][0]),
}))
"""
# Kernels: height, width, channels in and out.
KERNELS = [(5, 5, 1, 32), (3, 3, 32, 64), (5 * 5 * 64, 1024), (1024, 10)]


@pytest.mark.parametrize("name", CNNS)
def test_the_three_networks_are_that_of_the_question_and_start_alike(name: str) -> None:
    code = f"import sys\nsys.path.insert(0, {str(EXAMPLES)!r})\n{NETWORKS.replace('EXAMPLE', name)}"
    done = run_python(code)
    assert done.returncode == 0, done.stderr
    seen = json.loads(done.stdout)
    assert seen["dropouts"] == 3
    assert seen["same"]
    assert seen["another seed"]
    to_torch = (3, 2, 0, 1) if name == "cnn_torch" else (0, 1, 2, 3)
    for kernel, shape, most, bias_shape, bias in zip(
        KERNELS, seen["shapes"][::2], seen["glorot"][::2], seen["shapes"][1::2], seen["glorot"][1::2], strict=True
    ):
        order = to_torch if len(kernel) == 4 else (1, 0) if name == "cnn_torch" else (0, 1)
        assert tuple(shape) == tuple(kernel[axis] for axis in order)
        limit = math.sqrt(6 / (math.prod(kernel[:-2]) * (kernel[-2] + kernel[-1])))
        assert 0.98 * limit < most < 1.0001 * limit
        assert tuple(bias_shape) == kernel[-1:]
        assert bias == 0


def test_the_images_are_enlarged_as_pytorch_does() -> None:
    code = f"""
import sys
sys.path.insert(0, {str(EXAMPLES)!r})
import cnn_common, numpy as np, torch
from sklearn.datasets import load_digits
train, test, train_labels, test_labels = cnn_common.digits(0)
small = torch.from_numpy(load_digits().images / 16)[:, None]
large = torch.nn.functional.interpolate(small, 28, mode="bilinear")[:, 0].float().numpy()
ours = np.concatenate([train, test])
sums = lambda images: np.sort(images.reshape(len(images), -1) @ np.random.default_rng(0).random(28 * 28))
print(len(train), len(test), ours.dtype, np.allclose(sums(ours), sums(large), atol=1e-4), ours.min() >= 0, ours.max())
"""
    done = run_python(code)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["1000", "797", "float32", "True", "True", "1.0"]
