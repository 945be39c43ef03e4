"""What a rank does in tests of tensors that are spread over processes: `python ranks.py FOLDER WORLD_SIZE [NAME]`.

Each function named `test_...`, or the one of that name, is run on all ranks, one after the other; the last line that is
printed is a JSON object with what went wrong in each, rank by rank, None where nothing did.
"""

import copy
import datetime
import json
import os
import re
import sys
import warnings
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from outcomes import outcomes
from tensors import next_mask
from torch import nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.tensor import DTensor, Partial, Replicate, Shard, distribute_tensor
from torch.distributed.tensor.debug import CommDebugMode

import dropfast.torch
from dropfast import Mask

SHAPE = (6, 5, 7)  # uneven over 2 and over 4 ranks
PLACEMENTS: dict[str, list[Any]] = {
    "shard-first": [Shard(0)],
    "shard-middle": [Shard(1)],
    "shard-last": [Shard(2)],
    "replicate": [Replicate()],
}
PLACEMENTS_2D: dict[str, list[Any]] = {
    "shard-shard": [Shard(0), Shard(2)],
    "shard-shard-reversed": [Shard(2), Shard(0)],
    "one-axis-twice": [Shard(1), Shard(1)],
    "shard-replicate": [Shard(1), Replicate()],
    "replicate-shard": [Replicate(), Shard(0)],
    "replicate-replicate": [Replicate(), Replicate()],
}
SHARED: dict[str, Any] = {"none": (), "first": 0, "last": -1, "ends": (0, 2)}


class Quiet(CommDebugMode):
    """Nothing may be sent or received."""

    def __exit__(self, *args: Any) -> None:
        super().__exit__(*args)
        assert self.get_total_counts() == 0, self.get_comm_counts()


def meshes() -> list[tuple[DeviceMesh, dict[str, list[Any]]]]:
    size = dist.get_world_size()
    found = [(init_device_mesh("cpu", (size,)), PLACEMENTS)]
    found.append((init_device_mesh("cpu", (size // 2, 2)), PLACEMENTS_2D))
    return found


def same(spread: torch.Tensor, whole: torch.Tensor) -> None:
    assert isinstance(spread, DTensor)
    assert torch.equal(spread.full_tensor(), whole)


def whole(dtype: torch.dtype = torch.float32) -> torch.Tensor:
    torch.manual_seed(1)
    return torch.randn(SHAPE, dtype=torch.float64).to(dtype)


# ---- the whole is what one process computes ------------------------------------------------------


def both_ways(call: Callable[[torch.Tensor], torch.Tensor], mask: Mask, x: torch.Tensor) -> None:
    """Forward, backward, without a word between ranks."""
    want = dropfast.torch.apply(mask, x.detach())
    dy = torch.flip(x.detach(), (0,))
    for mesh, placements in meshes():
        for name, by in placements.items():
            leaf = distribute_tensor(x, mesh, by).requires_grad_()
            grad = distribute_tensor(dy, mesh, by)
            torch.manual_seed(5)
            with Quiet():
                y = call(leaf)
                y.backward(grad)
            assert y.placements == tuple(by), name
            same(y.detach(), want)
            assert leaf.grad is not None
            assert leaf.grad.placements == tuple(by), name
            same(leaf.grad, dropfast.torch.apply(mask, dy))


def test_apply() -> None:
    for dtype in (torch.float16, torch.bfloat16, torch.float32, torch.float64):
        for axes in SHARED.values():
            mask = Mask(SHAPE, 0.3, key=2**64 - 3, draw=2, shared_axes=axes)
            both_ways(lambda x, mask=mask: dropfast.torch.apply(mask, x), mask, whole(dtype))  # type: ignore[misc]


def test_apply_of_a_window() -> None:
    mask = Mask((2**31, 9, 2**9), 0.3, key=7).window((2**31 - 7, 2, 40), SHAPE)
    both_ways(lambda x: dropfast.torch.apply(mask, x), mask, whole())


def test_dropout() -> None:
    for axes in SHARED.values():
        torch.manual_seed(5)
        mask = next_mask(SHAPE, 0.3, shared_axes=axes)
        both_ways(lambda x, axes=axes: dropfast.torch.dropout(x, 0.3, shared_axes=axes), mask, whole())  # type: ignore[misc]
        both_ways(dropfast.torch.Dropout(0.3, shared_axes=axes), mask, whole())


def test_layers_of_channels() -> None:
    torch.manual_seed(5)
    both_ways(dropfast.torch.Dropout1d(0.3), next_mask(SHAPE, 0.3, shared_axes=2), whole())


def test_dropout_by_a_generator() -> None:
    generator = torch.Generator().manual_seed(3)
    mask = next_mask(SHAPE, 0.5, generator)
    state = generator.get_state()

    def call(x: torch.Tensor) -> torch.Tensor:
        generator.set_state(state)
        return dropfast.torch.dropout(x, generator=generator)

    both_ways(call, mask, whole())


def test_dropout_in_place() -> None:
    torch.manual_seed(5)
    mask = next_mask(SHAPE)
    both_ways(lambda x: dropfast.torch.dropout(x * 1, inplace=True), mask, whole())


def test_enabled() -> None:
    torch.manual_seed(5)
    mask = next_mask(SHAPE, 0.3)
    with dropfast.torch.enable():
        both_ways(lambda x: nn.functional.dropout(x, 0.3), mask, whole())
        both_ways(nn.Dropout(0.3), mask, whole())
        both_ways(lambda x: nn.functional.dropout(x * 1, 0.3, inplace=True), mask, whole())


def test_without_gradients() -> None:
    mesh, placements = meshes()[0]
    x = whole()
    for mode in (torch.no_grad, torch.inference_mode):
        for inplace in (False, True):
            for by in placements.values():
                spread = distribute_tensor(x, mesh, by)
                with dropfast.torch.enable(), mode():
                    for function in (nn.functional.dropout, dropfast.torch.dropout):
                        torch.manual_seed(5)
                        mask = next_mask(SHAPE, 0.3)
                        same(function(spread * 1, 0.3, inplace=inplace).clone(), dropfast.torch.apply(mask, x))
                    assert torch.equal(nn.functional.dropout(spread, 0.3, training=False).full_tensor(), x)


def test_pytorch_gives_each_rank_the_same_mask() -> None:
    """Which is why there is something to do."""
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    torch.manual_seed(5)
    x = distribute_tensor(torch.ones(8 * dist.get_world_size(), 8), mesh, [Shard(0)])
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "DTensor random operators may not have complete support on cpu device mesh")
        parts = nn.functional.dropout(x).full_tensor().chunk(dist.get_world_size())
    assert all(torch.equal(part, parts[0]) for part in parts)


def test_redistribution_changes_nothing() -> None:
    torch.manual_seed(5)
    mask, x = next_mask(SHAPE, 0.3), whole()
    for mesh, placements in meshes():
        for before in placements.values():
            for after in placements.values():
                leaf = distribute_tensor(x, mesh, before).requires_grad_()
                torch.manual_seed(5)
                y = dropfast.torch.dropout(leaf.redistribute(mesh, after), 0.3).redistribute(mesh, before)
                same(y.detach(), dropfast.torch.apply(mask, x))
                y.backward(distribute_tensor(x, mesh, after))  # lies otherwise than y
                assert leaf.grad is not None
                same(leaf.grad, dropfast.torch.apply(mask, x))


def test_a_gradient_that_lies_otherwise() -> None:
    """Also one that has yet to be summed: what comes out has, too."""
    mask, x = Mask(SHAPE, key=3), whole()
    mesh, placements = meshes()[0]
    for by in placements.values():
        for of_gradient in [*placements.values(), [Partial()]]:
            part = x if of_gradient != [Partial()] or dist.get_rank() == 0 else torch.zeros(SHAPE)
            if of_gradient == [Partial()]:
                grad = DTensor.from_local(part, mesh, of_gradient)
            else:
                grad = distribute_tensor(part, mesh, of_gradient)
            leaf = distribute_tensor(x, mesh, by).requires_grad_()
            y = dropfast.torch.apply(mask, leaf)
            with Quiet():
                (got,) = torch.autograd.grad(y, leaf, grad)
            same(got, dropfast.torch.apply(mask, x))


def test_keys_are_equal_and_move_on() -> None:
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    torch.manual_seed(5)
    x = distribute_tensor(torch.ones(SHAPE), mesh, [Shard(0)])
    first, second = dropfast.torch.dropout(x), dropfast.torch.dropout(x)
    state = torch.get_rng_state()
    states = [torch.empty_like(state) for _ in range(dist.get_world_size())]
    dist.all_gather(states, state)
    assert all(torch.equal(state, other) for other in states)
    assert not torch.equal(first.full_tensor(), second.full_tensor())


# ---- compilers -----------------------------------------------------------------------------------


def compiled(enabled: bool) -> None:
    function = nn.functional.dropout if enabled else dropfast.torch.dropout
    torch.manual_seed(5)
    mask, x = next_mask(SHAPE, 0.3), whole()
    context: AbstractContextManager[Any] = dropfast.torch.enable() if enabled else nullcontext()
    with context:
        torch.compiler.reset()
        call = torch.compile(lambda x: function(x * 2, 0.3), backend="aot_eager", fullgraph=True)
        mesh = init_device_mesh("cpu", (dist.get_world_size(),))
        for by in ([Shard(0)], [Shard(2)], [Replicate()]):
            leaf = distribute_tensor(x, mesh, by).requires_grad_()
            torch.manual_seed(5)
            y = call(leaf)
            same(y.detach(), dropfast.torch.apply(mask, x * 2))
            y.backward(distribute_tensor(x, mesh, by))
            assert leaf.grad is not None
            same(leaf.grad, dropfast.torch.apply(mask, x) * 2)


def test_compiled() -> None:
    compiled(enabled=False)


def test_compiled_and_enabled() -> None:
    compiled(enabled=True)


def inductor() -> None:
    """Twice, so that PyTorch's caches on disk have what all ranks have compiled before."""
    warnings.filterwarnings("ignore", "`torch.jit.script", DeprecationWarning)  # which the compiler itself uses
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    x = distribute_tensor(whole(), mesh, [Shard(0)])
    for _ in range(2):
        torch.compiler.reset()
        dist.barrier()
        torch.manual_seed(5)
        y = torch.compile(lambda x: dropfast.torch.dropout(x * 2, 0.3), fullgraph=True)(x)
        torch.manual_seed(5)
        same(y, dropfast.torch.apply(next_mask(SHAPE, 0.3), whole() * 2))


def test_compiled_and_refused() -> None:
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    sums = DTensor.from_local(torch.ones(4, 3), mesh, [Partial()])
    for enabled in (False, True):
        function = nn.functional.dropout if enabled else dropfast.torch.dropout
        with dropfast.torch.enable() if enabled else nullcontext():
            torch.compiler.reset()
            with pytest.raises(Exception, match="input must be sharded or replicated on each axis of the mesh"):
                torch.compile(lambda x, f=function: f(x, 0.3), backend="aot_eager", fullgraph=True)(sums)


def test_checkpoint() -> None:
    from torch.utils.checkpoint import checkpoint

    torch.manual_seed(5)
    mask = next_mask(SHAPE, 0.3)
    both_ways(
        lambda x: checkpoint(lambda x: dropfast.torch.dropout(x, 0.3), x, use_reentrant=False),
        mask,
        whole(),
    )


# ---- what is refused -----------------------------------------------------------------------------


def cut_by_the_last_axis_first(x: torch.Tensor) -> DTensor:
    usual = distribute_tensor(x, init_device_mesh("cpu", (2, dist.get_world_size() // 2)), [Shard(0), Shard(0)])
    spec = copy.copy(usual._spec)
    spec.shard_order = (spec.shard_order[0]._replace(mesh_dims=(1, 0)),)
    return DTensor(usual.to_local(), spec, requires_grad=False)


def test_refused() -> None:
    from torch.distributed.tensor.placement_types import _StridedShard

    size = dist.get_world_size()
    mesh = init_device_mesh("cpu", (size,))
    x = torch.ones(4 * size, 3)
    sums = DTensor.from_local(x, mesh, [Partial()])
    strided = DTensor.from_local(x, mesh, [_StridedShard(0, split_factor=2)])
    before = torch.get_rng_state()

    def enabled(x: torch.Tensor) -> torch.Tensor:
        with dropfast.torch.enable():
            return nn.functional.dropout(x)

    calls: list[Callable[[torch.Tensor], torch.Tensor]] = [
        lambda x: dropfast.torch.apply(Mask(tuple(x.shape), key=1), x),
        *(dropfast.torch.dropout, dropfast.torch.Dropout(), dropfast.torch.Dropout1d(), enabled),
    ]
    for call in calls:
        for bad in (sums, strided):
            words = f"^input must be sharded or replicated on each axis of the mesh.*{re.escape(str(bad.placements))}"
            with pytest.raises(ValueError, match=words):
                call(bad)
    for call in calls:
        with pytest.raises(ValueError, match=r"^input must be cut by the axes of the mesh from the first to the last"):
            call(cut_by_the_last_axis_first(x))
    assert torch.equal(torch.get_rng_state(), before)
    words = f"input must have the mask's shape {(4 * size, 4)}, got {(4 * size, 3)}"
    with pytest.raises(ValueError, match=re.escape(words)):
        dropfast.torch.apply(Mask((4 * size, 4), key=1), distribute_tensor(x, mesh, [Shard(0)]))


def test_what_does_nothing() -> None:
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    sums = DTensor.from_local(torch.ones(4), mesh, [Partial()])
    assert dropfast.torch.Dropout().eval()(sums) is sums
    assert dropfast.torch.dropout(sums, 0.0) is sums


# ---- the ranks -----------------------------------------------------------------------------------


def main(rank: int, folder: str, size: int, *name: str) -> None:
    os.environ["TORCHINDUCTOR_CACHE_DIR"] = f"{folder}/cache"
    wait = datetime.timedelta(seconds=60)
    dist.init_process_group("gloo", f"file://{folder}/meet", rank=rank, world_size=size, timeout=wait)
    everywhere: list[Any] = [None] * size
    dist.all_gather_object(everywhere, outcomes({f"test_{it}": globals()[it] for it in name} or globals()))
    if rank == 0:
        print(json.dumps({name: [each[name] for each in everywhere] for name in everywhere[0]}), flush=True)
    dist.barrier()
    os._exit(0)  # what gloo does when it is taken down is not ours to wait for


if __name__ == "__main__":
    context = mp.get_context("fork")
    size = int(sys.argv[2])
    ranks = [context.Process(target=main, args=(rank, sys.argv[1], size, *sys.argv[3:])) for rank in range(size)]
    for rank in ranks:
        rank.start()
    for rank in ranks:
        rank.join(110)
        if rank.exitcode is None:
            rank.kill()
