"""The demo runs, on every backend kind that is there, and writes its picture."""

import re
from pathlib import Path

import numpy as np
import pytest
from processes import run_module

from dropfast import _backend
from dropfast.bench.tables import figure
from dropfast.demo import answer, thinned, variance
from dropfast.demo.network import Network, Thinned, products_saved
from dropfast.demo.training import Trained

BACKENDS = ["native", "numpy"] if _backend.native else ["numpy"]


@pytest.mark.parametrize("kind", BACKENDS)
def test_demo(kind: str, tmp_path: Path) -> None:
    picture = tmp_path / "demo.png"
    done = run_module("dropfast", "demo", "--quick", "--out", str(picture), env={"DROPFAST_BACKEND": kind})
    assert done.returncode == 0, done.stderr
    assert picture.read_bytes().startswith(b"\x89PNG")
    for words in ("per-sample", "shared", "np.copyto", "test accuracy", "The answer", str(picture)):
        assert words in done.stdout
    rows = re.findall(r"^ (\d+)((?: +[\d.]+ \+- [\d.]+){4}) +[\d.]+ *$", done.stdout, re.MULTILINE)
    assert [int(m) for m, _ in rows] == list(variance.SIZES_OF_BATCH)  # the formulas with their errors too
    rows = re.findall(r"^ (\d+)%((?: +(?:[\d.]+|-)){7}) *$", done.stdout, re.MULTILINE)
    assert [int(target) for target, _ in rows] == list(thinned.TARGETS)
    rows = re.findall(rf"^ (\d+|products saved)((?: +[\d.]+){{{len(thinned.RATES)}}}) *$", done.stdout, re.MULTILINE)
    assert [width for width, _ in rows] == [*map(str, thinned.WIDTHS), "products saved"]
    gains = {width: cells.split() for width, cells in rows}
    narrow, wide = (gains[str(thinned.WIDTHS[place])][thinned.RATES.index(0.5)] for place in (0, -1))
    *_, said = " ".join(done.stdout.split()).partition("What a shared mask drops need not be computed")
    for words in (f" {wide} times as fast", f" {narrow} times with 256;", "Share masks where"):
        assert words in said


def test_the_formulas_own_error_counts() -> None:
    spread = np.array([[-1.0], [1.0]])  # whose standard error is 1
    sizes = np.array(variance.SIZES_OF_BATCH, np.float64)
    noise = variance.Noise(
        samples=dict.fromkeys(variance.COMPARED, 10 / sizes + 3 * spread / sizes),
        v=4 * spread[:, 0],
        c=np.zeros(2),
        data=0.0,
        means={},
    )
    for mode in variance.COMPARED:
        for (value, error), wanted in ((noise.measured(mode), (10, 3)), (noise.predicted(mode, sizes), (0, 4))):
            np.testing.assert_allclose(value * sizes, wanted[0], atol=1e-12)
            np.testing.assert_allclose(error * sizes, wanted[1])
    assert noise.worst() == pytest.approx(10 / 5)


@pytest.mark.parametrize(
    ("shared", "words"),
    [
        ([91.0, 91.2], "1.10 points ahead, standard error 0.10"),
        ([89.0, 88.8], "1.10 points behind, standard error 0.10"),
        ([91.0, 89.2], "too close to tell apart"),
    ],
)
def test_the_ending_is_what_was_measured(shared: list[float], words: str) -> None:
    last = {"shared": np.array(shared), "per-sample": np.array([90.0, 90.0])}
    accuracy = {mode: np.stack([np.zeros(2), of_seeds], axis=1) for mode, of_seeds in last.items()}
    assert answer.ending(Trained((1, 2), accuracy)) == words


# ---- thinned -------------------------------------------------------------------------------------


def test_a_thinned_network_is_the_shared_one(backend: str) -> None:
    x, labels = np.random.default_rng(1).standard_normal((32, 20), np.float32), np.arange(32) % 5
    networks = [kind((20, 65, 33, 5), np.random.default_rng(0)) for kind in (Network, Thinned)]
    for network in networks:
        network.set_dropout(0.5, 0, 7)
        before = [p.copy() for p in network.parameters()]
        for _ in range(10):
            network.descend(x, labels, 0.1)
        assert all(np.abs(p - q).max() > 0.01 for p, q in zip(network.parameters(), before, strict=True))
    for p, q in zip(*(network.parameters() for network in networks), strict=True):
        np.testing.assert_allclose(p, q, atol=1e-5)  # but for the order of sums


# Of two seeds: accuracy after the epochs 1, 2 and 4.
CURVES = {
    "per-sample": [[70, 80, 90], [80, 80, 85]],
    "shared": [[60, 70, 80], [60, 90, 80]],
    "shared, thinned": [[60, 70, 80], [60, 90, 80]],
}


def race(seconds_of_thinned: float) -> thinned.Race:
    accuracy = {mode: np.array(curves, np.float64) for mode, curves in CURVES.items()}
    seconds = {mode: np.tile([1.0, 2, 4], (2, 1)) for mode in CURVES}
    seconds["shared, thinned"] *= seconds_of_thinned
    return thinned.Race((1, 2, 4), accuracy, seconds)


@pytest.mark.parametrize(
    ("mode", "target", "epochs"),
    [
        ("per-sample", 75, [1.5, 1]),  # between two epochs; from the first on
        ("per-sample", 80, [2, 1]),
        ("per-sample", 85, [3, 4]),
        ("per-sample", 90, [4, np.inf]),  # one never comes so far
        ("shared", 80, [4, 1 + 2 / 3]),  # and stays there, whatever comes later
    ],
)
def test_until_an_accuracy(mode: str, target: float, epochs: list[float]) -> None:
    found, seconds = race(0.5).until(mode, target)
    np.testing.assert_allclose(found, epochs)
    np.testing.assert_allclose(seconds, epochs)  # a second an epoch


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (0.01, "54.8 times as fast (50 to 60): sharing and thinning won here."),
        (0.52, "1.05 times as fast (0.96 to 1.15): too close to tell apart."),
        (10, "0.055 times as fast (0.050 to 0.060): others for each sample won here."),
    ],
)
def test_the_verdict_is_what_was_measured(seconds: float, words: str) -> None:
    found = race(seconds)
    assert found.common() == [80]  # of one of the two 85 % was the most
    epochs = np.sqrt(4 / 2 * (1 + 2 / 3) / 1)
    said = " ".join(answer.verdict(found).split())
    assert f"To 80% with 1024 units, thinned training took {figure(epochs)} times as many epochs" in said
    assert said.endswith(words)


def test_the_verdict_tells_of_lower_accuracies_too() -> None:
    found = race(1.0)
    better = thinned.Race(found.epochs, {mode: curves + 5 for mode, curves in found.accuracy.items()}, found.seconds)
    assert better.common() == [80, 85]
    assert answer.verdict(better).endswith(f" (to 80%: {figure(better.ratios(80)[1][0])} times as fast).")


def test_a_training_that_was_too_short_has_no_verdict() -> None:
    found = race(1.0)
    short = thinned.Race(found.epochs, {mode: curves - 20 for mode, curves in found.accuracy.items()}, found.seconds)
    assert short.common() == []
    assert "too short" in answer.verdict(short)


def test_products_saved() -> None:
    assert products_saved((784, 2048, 2048, 10), 0.5) == pytest.approx(3.316, abs=1e-3)
    assert products_saved((10, 10, 10), 0.5) == 2  # a mask on one side of each
    assert products_saved((10, 10, 10, 10), 0.0) == 1


def test_info() -> None:
    done = run_module("dropfast", "info")
    assert done.returncode == 0, done.stderr
    for words in ("version", "stream", "backend", "isa", "why", "available", "openmp", "threading", "threads"):
        assert words in done.stdout
