"""Randomness is PyTorch's: seeds, copies, checkpoints and processes do what they do with its own dropout."""

import copy
import io
import pickle
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from processes import run_python
from tensors import next_mask
from torch import nn
from torch.utils.checkpoint import checkpoint

import dropfast.torch
from dropfast import Mask

LAYERS = ("Dropout", "Dropout1d", "Dropout2d", "Dropout3d")


def network(dropout: Any = dropfast.torch) -> nn.Sequential:
    return nn.Sequential(
        *(nn.Linear(16, 32), nn.ReLU(), dropout.Dropout(0.5)),
        *(nn.Linear(32, 8), dropout.Dropout1d(0.25), nn.Tanh(), nn.Linear(8, 4)),
    )


# ---- seeds and generators ------------------------------------------------------------------------


@pytest.mark.parametrize("call", [dropfast.torch.dropout, dropfast.torch.Dropout()], ids=["function", "layer"])
def test_manual_seed_repeats_and_calls_move_on(call: Callable[[torch.Tensor], torch.Tensor]) -> None:
    x = torch.ones(100)
    torch.manual_seed(7)
    first, second = call(x), call(x)
    torch.manual_seed(7)
    assert torch.equal(call(x), first)
    assert torch.equal(call(x), second)
    assert not torch.equal(first, second)


def test_a_call_takes_one_number_of_64_bits_and_a_call_that_does_nothing_none() -> None:
    x = torch.ones(100)
    torch.manual_seed(1)
    dropfast.torch.Dropout()(x)
    after = torch.get_rng_state()
    torch.manual_seed(1)
    torch.randint(-(2**63), 2**63 - 1, ())
    assert torch.equal(torch.get_rng_state(), after)
    dropfast.torch.Dropout(0.0)(x)
    dropfast.torch.Dropout().eval()(x)
    dropfast.torch.Dropout()  # nor does a new layer
    dropfast.torch.convert(network(nn))
    torch.set_rng_state(after)


def test_fork_rng_and_rng_states() -> None:
    layer, x = dropfast.torch.Dropout(), torch.ones(100)
    state = torch.get_rng_state()
    with torch.random.fork_rng():
        inside = layer(x)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(layer(x), inside)
    torch.set_rng_state(state)
    assert torch.equal(layer(x), inside)


@pytest.mark.parametrize("how", ["function", "layer"])
def test_a_generator_of_ones_own(how: str) -> None:
    x = torch.ones(100)
    before = torch.get_rng_state()

    def draw(seed: int) -> list[torch.Tensor]:
        generator = torch.Generator().manual_seed(seed)
        layer = dropfast.torch.Dropout(generator=generator)
        return [layer(x) if how == "layer" else dropfast.torch.dropout(x, generator=generator) for _ in range(2)]

    first, again, other = draw(1), draw(1), draw(2)
    assert torch.equal(torch.stack(first), torch.stack(again))
    assert not torch.equal(first[0], first[1])
    assert not torch.equal(first[0], other[0])
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("way", ["deepcopy", "pickle"])
def test_copies_of_a_layer_have_masks_of_their_own(way: str) -> None:
    """Their keys come from one generator, one after the other; a generator of a layer's own is copied with it."""
    x, model = torch.ones(100), dropfast.torch.Dropout()
    make: Callable[[Any], Any] = copy.deepcopy if way == "deepcopy" else lambda x: pickle.loads(pickle.dumps(x))
    assert not torch.equal(make(model)(x), model(x))
    model = dropfast.torch.Dropout(generator=torch.Generator().manual_seed(1))
    assert torch.equal(make(model)(x), model(x))


def test_a_run_repeats_by_manual_seed_also_if_the_model_is_older() -> None:
    model = network()
    start = copy.deepcopy(model.state_dict())

    def run() -> torch.Tensor:
        model.load_state_dict(start)
        torch.manual_seed(5)
        x = torch.randn(16, 16)
        optimizer = torch.optim.SGD(model.parameters(), 0.1)
        for _ in range(5):
            optimizer.zero_grad()
            model(x).square().mean().backward()
            optimizer.step()
        return torch.cat([p.detach().flatten() for p in model.parameters()])

    assert torch.equal(run(), run())


# ---- state_dict ----------------------------------------------------------------------------------


def test_state_dicts_are_those_of_pytorch() -> None:
    ours, theirs = network(), network(nn)
    assert ours.state_dict().keys() == theirs.state_dict().keys()
    assert ours.load_state_dict(theirs.state_dict()) == theirs.load_state_dict(ours.state_dict())
    average = {name: (value + ours.state_dict()[name]) / 2 for name, value in theirs.state_dict().items()}
    ours.load_state_dict(average)
    averaged = torch.optim.swa_utils.AveragedModel(ours, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(0.9))
    averaged.update_parameters(ours)
    file = io.BytesIO()
    torch.save(ours.half().state_dict(), file)
    file.seek(0)
    theirs.load_state_dict(torch.load(file, weights_only=True))


@pytest.mark.parametrize("assign", [False, True])
def test_files_with_the_keys_of_old_load_with_a_word(assign: bool) -> None:
    model = network()
    old = {**network().state_dict(), "2._extra_state": torch.tensor([7, 3]), "4._extra_state": torch.tensor([8, 3])}
    with pytest.warns(UserWarning, match="^_extra_state of dropfast's layers is not used"):
        model.load_state_dict(old, assign=assign)
    assert torch.equal(model[0].weight, old["0.weight"])
    assert "2._extra_state" in old
    with pytest.raises(RuntimeError, match="Unexpected key"):
        model.load_state_dict({**model.state_dict(), "2.other": torch.zeros(1)})


# ---- checkpointing -------------------------------------------------------------------------------


def gradients(call: Callable[[torch.Tensor], torch.Tensor], model: nn.Module) -> list[torch.Tensor]:
    """The outputs and gradients of some steps; x needs one too."""
    found = []
    for step in range(3):
        torch.manual_seed(step)
        x = torch.randn(12, 16).requires_grad_()
        model.zero_grad()
        y = call(x)
        after = torch.get_rng_state()
        torch.rand(1)  # somebody else's, between forward and backward
        y.square().sum().backward()
        torch.set_rng_state(after)
        assert x.grad is not None
        found += [y.detach(), x.grad, *(p.grad.clone() for p in model.parameters() if p.grad is not None)]
    return found


CHECKPOINTS: dict[str, Callable[[nn.Sequential, torch.Tensor], torch.Tensor]] = {
    "one": lambda model, x: checkpoint(model, x, use_reentrant=False),
    "reentrant": lambda model, x: checkpoint(model, x, use_reentrant=True),
    "nested": lambda model, x: checkpoint(
        lambda x: model[3:](checkpoint(model[:3], x, use_reentrant=False)), x, use_reentrant=False
    ),
    "nested-reentrant": lambda model, x: checkpoint(
        lambda x: model[3:](checkpoint(model[:3], x, use_reentrant=True)), x, use_reentrant=True
    ),
    "two": lambda model, x: checkpoint(model[3:], checkpoint(model[:3], x, use_reentrant=False), use_reentrant=False),
    "sequential": lambda model, x: torch.utils.checkpoint.checkpoint_sequential(model, 3, x, use_reentrant=False),
}


@pytest.mark.parametrize("how", CHECKPOINTS)
def test_checkpoints_do_not_change_gradients(how: str) -> None:
    model = network()
    got = gradients(lambda x: CHECKPOINTS[how](model, x), model)
    want = gradients(model, model)
    assert all(torch.equal(a, b) for a, b in zip(got, want, strict=True))


def test_a_checkpoint_repeats_a_mask_with_a_name_without_the_state_of_the_generator() -> None:
    mask, x = Mask((12, 16), key=1), torch.randn(12, 16, requires_grad=True)
    y = checkpoint(lambda x: dropfast.torch.apply(mask, x).sin(), x, use_reentrant=False, preserve_rng_state=False)
    torch.rand(1)
    (grad,) = torch.autograd.grad(y.sum(), x)
    assert torch.equal(grad, dropfast.torch.apply(mask, dropfast.torch.apply(mask, x).cos()))


# ---- processes -----------------------------------------------------------------------------------


def test_dataloader_workers_after_a_parallel_call() -> None:
    done = run_python(
        textwrap.dedent("""
            import warnings, torch, dropfast.torch
            from dropfast import Mask
            warnings.filterwarnings("ignore", "This DataLoader will create 2 worker processes")  # of few cores
            class Data(torch.utils.data.Dataset):
                def __len__(self):
                    return 4
                def __getitem__(self, i):
                    big = dropfast.torch.apply(Mask(1 << 19, key=1), torch.ones(1 << 19))
                    return big.sum(), dropfast.torch.dropout(torch.ones(100))
            def main():
                torch.manual_seed(0)
                want = dropfast.torch.apply(Mask(1 << 19, key=1), torch.ones(1 << 19)).sum()
                loader = torch.utils.data.DataLoader(Data(), num_workers=2, multiprocessing_context="fork", timeout=60)
                items = list(loader)
                assert all(item[0] == want for item in items)
                assert len({tuple(item[1][0].tolist()) for item in items}) == 4  # each worker and call its own
                print("done")
            main()
        """),
        env={"OMP_NUM_THREADS": "2"},
    )
    assert (done.stdout, done.returncode) == ("done\n", 0), done.stderr


def test_data_parallel_ranks_have_the_masks_of_their_seeds(tmp_path: Path) -> None:
    """Also where all have loaded one checkpoint."""
    done = run_python(
        textwrap.dedent("""
            import datetime, os, sys, torch, torch.multiprocessing as mp, dropfast.torch
            import torch.distributed as dist
            from dropfast import Mask
            def main(rank, folder):
                dist.init_process_group("gloo", f"file://{folder}/meet", rank=rank, world_size=2,
                                        timeout=datetime.timedelta(seconds=60))
                model = torch.nn.Sequential(torch.nn.Linear(50, 50), dropfast.torch.Dropout())
                shared = [model.state_dict()]
                dist.broadcast_object_list(shared)
                model.load_state_dict(shared[0])
                ddp = torch.nn.parallel.DistributedDataParallel(model)
                for case, seed in (("own", rank), ("equal", 0)):
                    torch.manual_seed(seed)
                    for step in range(2):
                        ddp.zero_grad()
                        y = ddp(torch.ones(4, 50))
                        y.sum().backward()
                    dropped = [torch.empty(4, 50) for _ in range(2)]
                    dist.all_gather(dropped, (y == 0).float())
                    assert torch.equal(*dropped) == (case == "equal")
                    grads = [torch.empty(50, 50) for _ in range(2)]
                    dist.all_gather(grads, model[0].weight.grad)
                    assert torch.equal(*grads)
                # A batch in shards: one mask for all ranks.
                mask = Mask((8, 50), key=7)
                x = torch.arange(400.0).view(8, 50)
                part = dropfast.torch.apply(mask.window((4 * rank, 0), (4, 50)), x[4 * rank : 4 * rank + 4])
                parts = [torch.empty(4, 50) for _ in range(2)]
                dist.all_gather(parts, part)
                assert torch.equal(torch.cat(parts), dropfast.torch.apply(mask, x))
                dist.barrier()
                os._exit(0)  # what gloo does when it is taken down is not ours to wait for
            folder = sys.argv[1]
            context = mp.get_context("fork")
            ranks = [context.Process(target=main, args=(rank, folder)) for rank in range(2)]
            [rank.start() for rank in ranks]
            [rank.join(90) for rank in ranks]
            print([rank.exitcode for rank in ranks])
            [rank.kill() for rank in ranks if rank.exitcode is None]
        """),
        str(tmp_path),
        env={"OMP_NUM_THREADS": "1"},
    )
    assert done.stdout.endswith("[0, 0]\n"), done.stderr


def test_threads_have_masks_of_their_own() -> None:
    from concurrent.futures import ThreadPoolExecutor

    layer, x = dropfast.torch.Dropout(), torch.ones(128)
    with ThreadPoolExecutor(8) as pool:
        masks = list(pool.map(lambda _: tuple(layer(x).tolist()), range(400)))
    assert len(set(masks)) == 400


def test_the_mask_of_a_call_has_a_name_if_one_asks_for_it() -> None:
    x = torch.randn(4, 10)
    mask = next_mask((4, 10))
    assert torch.equal(dropfast.torch.dropout(x), dropfast.torch.apply(mask, x))
