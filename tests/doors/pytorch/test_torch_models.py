"""benchmarks/models.py does its work: what drops in each model, in each way, with a table and a picture."""

import re
import sys
from collections.abc import Iterator
from pathlib import Path

import any_torchvision  # noqa: F401
import pytest
import torch

sys.path.append(str(Path(__file__).parents[3] / "benchmarks"))
import models
import networks

pytestmark = pytest.mark.filterwarnings("ignore")  # of others there are too many

# Calls by modules, by functions and in attention: those of many real programs.
CALLS = {
    "gcn": (0, 2, 0),
    "gat": (0, 4, 0),
    "tabular": (3, 0, 0),
    "droq": (8, 0, 0),
    "bert": (10, 0, 4),
    "nanogpt": (5, 0, 2),
    "t5": (25, 0, 9),
    "swin": (0, 0, 0),
}


@pytest.fixture(autouse=True)
def _threads() -> Iterator[None]:
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


@pytest.mark.parametrize("name", CALLS)
def test_who_calls(name: str) -> None:
    found = [call.kind for call in models.calls(networks.NETWORKS[name])]
    assert tuple(map(found.count, models.KINDS)) == CALLS[name]


def test_tables_and_picture(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    picture = tmp_path / "models.png"
    monkeypatch.setattr(sys, "argv", ["", "gat", "droq", "--seconds", "0", "--picture", str(picture)])
    models.main()
    printed = capsys.readouterr().out
    assert "| GAT, Cora's size |  | 4: 4.17 |  | 4: 4.17 |" in printed
    assert "| DroQ's critics, batch 256 | 8: 0.524 |  |  | 8: 0.524 |" in printed
    for threads in ("1 thread:", "2 threads:"):
        part = printed.partition(threads)[2]
        rows = re.findall(r"^\| (GAT|DroQ).*((?: \| [0-9.e+]+){6}) \|$", part, re.M)
        assert [name for name, _ in rows][:2] == ["GAT", "DroQ"]
    assert picture.read_bytes().startswith(b"\x89PNG")
