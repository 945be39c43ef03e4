"""One network, trained by 1, 2 or 4 processes, with the same masks and so the same losses.

python torch_processes.py tensor 2   # tensor parallelism: a layer's columns are divided
python torch_processes.py fsdp 4     # fully sharded data parallelism (FSDP2): the batch and the parameters are divided
"""

import argparse
import os
import tempfile

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Replicate, Shard
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

import dropfast.torch

BATCH, WIDTH, HIDDEN, CLASSES = 32, 20, 50, 4


def network() -> nn.Sequential:
    return nn.Sequential(
        *(nn.Linear(WIDTH, HIDDEN), nn.GELU(), dropfast.torch.Dropout(0.5)),
        *(nn.Linear(HIDDEN, HIDDEN), dropfast.torch.Dropout(0.1)),
        nn.Linear(HIDDEN, CLASSES),
    )


def tensor_parallel(mesh: DeviceMesh) -> nn.Module:
    """Divide the hidden units. What a dropout layer gets is a DTensor, of which a rank has its part."""
    plan = {
        "0": ColwiseParallel(use_local_output=False),  # sharded along the last axis, also if 50 units are not even
        "3": RowwiseParallel(use_local_output=False),  # the same on all ranks
        "5": ColwiseParallel(output_layouts=Replicate()),
    }
    return parallelize_module(network(), mesh, plan)


class OfAllRanks(nn.Module):
    """A layer for the whole batch, of which each rank has some rows."""

    def __init__(self, layer: nn.Module, mesh: DeviceMesh) -> None:
        super().__init__()
        self.layer, self.mesh = layer, mesh

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        return self.layer(DTensor.from_local(rows, self.mesh, [Shard(0)])).to_local()


def fsdp(mesh: DeviceMesh) -> nn.Module:
    """Divide the batch and the parameters. Without `OfAllRanks`, one seed would be one mask for each rank's rows."""
    model = network()
    for place in (2, 4):
        model[place] = OfAllRanks(model[place], mesh)
    for place in (0, 3, 5):
        fully_shard(model[place], mesh=mesh)
    return fully_shard(model, mesh=mesh)


def train(rank: int, size: int, folder: str, way: str, steps: int, seed: int) -> None:
    torch.set_default_dtype(torch.float64)  # so that the order of sums does not show
    dist.init_process_group("gloo", f"file://{folder}/meet", rank=rank, world_size=size)
    mesh = init_device_mesh("cpu", (size,))
    torch.manual_seed(seed)  # the same on all ranks: so are the parameters, the data and the masks
    model = fsdp(mesh) if way == "fsdp" else tensor_parallel(mesh)
    x, labels = torch.randn(BATCH, WIDTH), torch.randint(CLASSES, (BATCH,))
    if way == "fsdp":
        x, labels = x.chunk(size)[rank], labels.chunk(size)[rank]
    optimizer = torch.optim.SGD(model.parameters(), 0.5)
    for step in range(steps):
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(x), labels)
        loss.backward()
        optimizer.step()
        loss = loss.detach()
        if way == "fsdp":
            dist.all_reduce(loss)
            loss /= size
        if rank == 0:
            print(f"step {step}: loss {loss.item():.9f}", flush=True)
    dist.barrier()
    os._exit(0)  # what gloo does when it is taken down is not ours to wait for


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("way", choices=["tensor", "fsdp"])
    parser.add_argument("processes", type=int, choices=[1, 2, 4])
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        arguments = given.processes, folder, given.way, given.steps, given.seed
        mp.start_processes(train, arguments, given.processes, start_method="fork")


if __name__ == "__main__":
    main()
