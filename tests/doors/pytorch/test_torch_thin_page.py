"""docs/thin.md runs with PyTorch, too, and so does benchmarks/thin.py: every way, with its tables and its picture."""

import re
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from test_docs import run, session_of

sys.path.append(str(Path(__file__).parents[3] / "benchmarks"))
import thin as benchmark
import thin_ways as ways

PAGE = Path(__file__).parents[3] / "docs" / "thin.md"
CASE = ways.Case((40, 96, 160, 10), batch=24, rate=0.5)
WITHOUT_DROPOUT = CASE._replace(rate=0.0)


@pytest.fixture(autouse=True)
def _threads() -> Iterator[None]:
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


def test_page() -> None:
    run(session_of(PAGE))


@pytest.mark.parametrize("way", ways.NUMPY)
def test_steps_of_numpy_are_those_of_the_dense_network(way: str) -> None:
    x, labels = CASE.data()
    kind, shared_axes = ways.NUMPY[way]
    networks = [kind(CASE.sizes, np.random.default_rng(0)), ways.Network(CASE.sizes, np.random.default_rng(0))]
    for network in networks:
        network.set_dropout(CASE.rate, shared_axes, 5)
        for _ in range(5):
            network.descend(x, labels, 0.1)
    for p, q in zip(*(network.parameters() for network in networks), strict=True):
        np.testing.assert_allclose(p, q, atol=1e-5)  # but for the order of sums


@pytest.mark.parametrize("way", ways.TORCH)
def test_gradients_of_pytorch_are_those_of_the_same_network(way: str) -> None:
    torch.manual_seed(0)
    model, dense = ways.TORCH[way](WITHOUT_DROPOUT), ways.perceptron(CASE.sizes, torch.nn.Identity)
    for p, q in zip(model.parameters(), dense.parameters(), strict=True):
        q.data.copy_(p.data)
    x = torch.from_numpy(CASE.data()[0])
    for network in (model, dense):
        network(x).square().mean().backward()
    for p, q in zip(model.parameters(), dense.parameters(), strict=True):
        torch.testing.assert_close(p.grad, q.grad)


def test_samples_are_of_the_thinned_networks() -> None:
    usual, once = (ways.sample_numpy(WITHOUT_DROPOUT, 3, thinned=thinned)() for thinned in (False, True))
    np.testing.assert_allclose(usual, once, atol=1e-5)
    for sample in (ways.sample_numpy, ways.sample_torch):
        for thinned in (False, True):
            y = np.asarray(sample(CASE, 3, thinned=thinned)())
            assert y.shape == (3, CASE.batch, CASE.sizes[-1])
            assert not np.array_equal(y[0], y[1])


def test_tables_and_picture(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    picture = tmp_path / "thin.png"
    monkeypatch.setattr(benchmark, "STEPS", {"width": [CASE, CASE._replace(rate=0.2)]})
    monkeypatch.setattr(benchmark, "SAMPLED", [CASE])
    monkeypatch.setattr(sys, "argv", ["", "--seconds", "0", "--picture", str(picture)])
    benchmark.main()
    printed = capsys.readouterr().out
    for threads in ("1 thread.", "2 threads."):
        steps, samples = printed.partition(f"{threads} A step, by width")[2].split(f"{threads} 16 samples")[:2]
        rows = re.findall(r"^\| 40-96-160-10, 24, (0\.\d)((?: \| [0-9.]+){9}) \|$", steps, re.M)
        assert [rate for rate, _ in rows] == ["0.5", "0.2"]
        assert re.findall(r"^\| 40-96-160-10, 24, 0.5(?: \| [0-9.]+){4} \|$", samples, re.M)
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_a_kind_that_is_not_there_is_refused(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["", "depth"])
    with pytest.raises(SystemExit):
        benchmark.main()
    assert "there is no kind depth; there are rate, width, batch, net, sample" in capsys.readouterr().err
