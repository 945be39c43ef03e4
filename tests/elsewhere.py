"""The one mask in a process of its own, for what needs one: `python elsewhere.py WAY FOLDER`.

Applies the mask of KEY and DRAW to x.npy in the folder, and writes y.npy.
"""

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from cases import Array

RATE, KEY, DRAW = 0.3, 0xFEDCBA9876543210, 7


def over_4_devices_of_jax(x: Array, folder: Path) -> Any:
    os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=4"
    import jax

    import dropfast.jax
    from dropfast import Mask

    rows = jax.sharding.NamedSharding(jax.make_mesh((4,), ("rows",)), jax.sharding.PartitionSpec("rows"))
    mask = Mask(x.shape, RATE, key=KEY, draw=DRAW)
    y = jax.jit(lambda x: dropfast.jax.apply(mask, x))(jax.device_put(x, rows))
    assert len(y.sharding.device_set) == 4
    return y


def over_2_ranks_of_torch(x: Array, folder: Path) -> Any:
    import torch.multiprocessing as mp

    context = mp.get_context("fork")
    ranks = [context.Process(target=_rank, args=(rank, x, folder)) for rank in range(2)]
    for rank in ranks:
        rank.start()
    for rank in ranks:
        rank.join(60)
        assert rank.exitcode == 0
    return np.concatenate([np.load(folder / f"rank{rank}.npy") for rank in range(2)])


def _rank(rank: int, x: Array, folder: Path) -> None:
    import torch
    import torch.distributed as dist
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import DTensor, Shard

    import dropfast.torch
    from dropfast import Mask

    dist.init_process_group("gloo", f"file://{folder}/meet", rank=rank, world_size=2)
    mine = torch.from_numpy(x).chunk(2)[rank]
    part = DTensor.from_local(mine, init_device_mesh("cpu", (2,)), [Shard(0)])
    y = dropfast.torch.apply(Mask(x.shape, RATE, key=KEY, draw=DRAW), part)
    np.save(folder / f"rank{rank}.npy", y.to_local().numpy())
    dist.barrier()
    os._exit(0)  # what gloo does when it is taken down is not ours to wait for


def interpreted_by_triton(x: Array, folder: Path) -> Any:
    os.environ["TRITON_INTERPRET"] = "1"
    import torch

    from dropfast import Mask
    from dropfast.torch import _triton

    return _triton.apply(torch.from_numpy(x), Mask(x.shape, RATE, key=KEY, draw=DRAW)._recipe).numpy()


def from_a_saved_model(x: Array, folder: Path) -> Any:
    """Of one that has the mask in it: dropfast is not asked."""
    import tensorflow as tf

    y = tf.saved_model.load(str(folder / "model"))(tf.constant(x))
    assert "dropfast" not in sys.modules
    return y.numpy()


WAYS: dict[str, Callable[[Array, Path], Any]] = {
    way.__name__: way
    for way in (over_4_devices_of_jax, over_2_ranks_of_torch, interpreted_by_triton, from_a_saved_model)
}

if __name__ == "__main__":
    way, folder = sys.argv[1], Path(sys.argv[2])
    np.save(folder / "y.npy", np.asarray(WAYS[way](np.load(folder / "x.npy"), folder)))
