"""Tensors that are spread over 2 and 4 processes have the masks of the whole: `ranks.py`, and the example."""

import json
import re
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import ranks
from outcomes import names_of
from processes import PATIENCE, run_file, run_python

EXAMPLE = Path(__file__).parents[3] / "examples" / "torch_processes.py"
TESTS = Path(ranks.__file__).parent


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """What went wrong in each test, by the number of processes: they are started once for all tests."""

    @cache
    def of(size: int) -> dict[str, list[str | None]]:
        folder = tmp_path_factory.mktemp("ranks")
        env = {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(TESTS)}
        done = run_file(Path(ranks.__file__), str(folder), str(size), env=env)
        assert done.stdout, done.stderr
        return json.loads(done.stdout.splitlines()[-1])

    return of


@pytest.mark.parametrize("name", names_of(vars(ranks)))
@pytest.mark.parametrize("size", [2, 4])
def test_ranks(outcomes: Any, size: int, name: str) -> None:
    words = outcomes(size)[name]
    assert words == [None] * size, "\n".join(filter(None, words))


@pytest.mark.timeout(4 * PATIENCE + 60, method="thread")  # a compiler for C++ is at work for each rank
def test_what_one_rank_has_compiled_is_not_for_others(tmp_path: Path) -> None:
    env = {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(TESTS)}
    done = run_file(Path(ranks.__file__), str(tmp_path), "2", "inductor", env=env, patience=4 * PATIENCE)
    assert done.stdout, done.stderr
    words = json.loads(done.stdout.splitlines()[-1])["test_inductor"]
    assert words == [None] * 2, "\n".join(filter(None, words))


@pytest.mark.parametrize("way", ["tensor", "fsdp"])
def test_any_number_of_processes_has_the_same_losses(way: str) -> None:
    """Masks and all: with those of another seed they would be others."""
    losses = {}
    for arguments in (("1",), ("2",), ("4",), ("1", "--seed", "1")):
        done = run_file(EXAMPLE, way, *arguments, "--steps", "4", env={"OMP_NUM_THREADS": "1"})
        assert done.returncode == 0, done.stderr
        losses[arguments] = re.findall(r"^step \d: loss (\d\.\d{9})$", done.stdout, re.MULTILINE)
    one, two, four, other = losses.values()
    assert len(set(one)) == 4
    assert one == two == four != other


@pytest.mark.parametrize("first", ["enable", "import"])
def test_enabling_reaches_dtensors_in_inference_mode_whichever_is_first(first: str) -> None:
    code = """
import os, sys, torch, dropfast.torch
if sys.argv[1] == "enable":
    dropfast.torch.enable()
    import colorsys  # it waits for another
    assert "torch.distributed.tensor" not in sys.modules
from torch.distributed.tensor import Shard, distribute_tensor, init_device_mesh
dropfast.torch.enable()
torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
x = torch.ones(6, 50)
spread = distribute_tensor(x, init_device_mesh("cpu", (1,)), [Shard(0)])
with torch.inference_mode():
    torch.manual_seed(5)
    y = torch.nn.functional.dropout(spread, 0.3)
torch.manual_seed(5)
assert torch.equal(y.to_local(), dropfast.torch.dropout(x, 0.3))
dropfast.torch.disable()
print("done", flush=True)
os._exit(0)
"""
    done = run_python(code, first)
    assert done.stdout == "done\n", done.stderr


def test_the_door_leaves_torch_distributed_to_those_who_need_it() -> None:
    code = """
import sys, torch, dropfast.torch
y = dropfast.torch.dropout(torch.ones(3, 4))
with dropfast.torch.enable():
    torch.nn.functional.dropout(y)
assert "torch.distributed.tensor" not in sys.modules
"""
    done = run_python(code)
    assert done.returncode == 0, done.stderr
