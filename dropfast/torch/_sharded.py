"""Tensors that are spread over ranks: each computes its window of the one mask, and no rank asks another.

Imported only where there is a DTensor. Autograd, compilers and transforms need no word of it: the operators are pure
functions of the whole tensor's indices, and what stands here says which of them a rank holds.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.compiler.config
import torch.distributed
from torch import Tensor, library
from torch.distributed.tensor import DTensor, Partial, Replicate, Shard

from dropfast import _checks
from dropfast.torch import _private
from dropfast.torch._operators import LIBRARY, moved, operators

_private.find("distributed.tensor.DTensor._spec")


def check(input: DTensor, allowed: tuple[type, ...] = (Replicate, Shard)) -> None:
    """Refuse a tensor of which no rank knows the elements that it holds."""
    if not all(type(placement) in allowed for placement in input.placements):
        raise ValueError(
            "input must be sharded or replicated on each axis of the mesh, for else no element is known on any rank; "
            f"got a DTensor with the placements {input.placements}, which redistribute makes another of"
        )
    if _private.is_cut_in_another_order(input):
        raise ValueError(
            "input must be cut by the axes of the mesh from the first to the last, "
            f"got a DTensor that is cut otherwise, with the placements {input.placements}"
        )


def _keep_ranks_apart() -> None:
    """Tell PyTorch's caches on disk the rank: a number of its own, the part of a mask, is in what it compiles."""
    tag = f"dropfast-rank-{torch.distributed.get_rank()}"
    tags = [tag for tag in torch.compiler.config.cache_key_tag.split("+") if tag]
    if tag not in tags:
        torch.compiler.config.cache_key_tag = "+".join([*tags, tag])


def _begin(input: DTensor) -> tuple[int, ...]:
    """Return where the rank's part begins on each axis, of which `torch.chunk` would give it the same part."""
    _keep_ranks_apart()
    begin, lengths = [0] * input.ndim, list(input.shape)
    rank = input.device_mesh.get_coordinate() or [0] * input.device_mesh.ndim  # no rank of the mesh has no part of it
    for along, (placement, its) in enumerate(zip(input.placements, rank, strict=True)):
        if isinstance(placement, Shard):
            axis, n = placement.dim, lengths[placement.dim]
            chunk = -(-n // input.device_mesh.size(along))
            first = torch.sym_min(chunk * its, n)
            begin[axis] += first
            lengths[axis] = torch.sym_min(chunk, n - first)
    return tuple(begin)


def _apply(_: Any, __: Any, ___: Any, args: Any = (), kwargs: Any = None) -> DTensor:
    """Apply the rank's window of a mask; a gradient need not lie as the input does, and may have yet to be summed."""
    input, state, strides, threshold = args
    check(input, (Replicate, Shard, Partial))
    behind_states = _begin(input)[state.ndim - 1 :]
    first = sum(a * stride for a, stride in zip(behind_states, strides, strict=True))
    with torch.no_grad():
        output = operators.apply(input.to_local(), moved(state, first), strides, threshold)
        return DTensor.from_local(
            output, input.device_mesh, input.placements, run_check=False, shape=input.shape, stride=input.stride()
        )


def _new_state(_: Any, __: Any, ___: Any, args: Any = (), kwargs: Any = None) -> Tensor:
    """Draw a key on each rank: one for all, as the ranks' generators are in one state."""
    with torch.no_grad():
        return operators.new_state(args[0].to_local())  # type: ignore[no-any-return]


def _dropout(_: Any, __: Any, ___: Any, args: Any = (), kwargs: Any = None) -> DTensor:
    """Drop where autograd's kernels are not asked, in inference mode."""
    input, p, train = args
    if not train or p == 0:
        return input  # type: ignore[no-any-return]
    check(input)
    return operators.dropout(input, _checks.threshold(p), ())  # type: ignore[no-any-return]


def _dropout_(*what: Any) -> DTensor:
    return what[3][0].copy_(_dropout(*what))  # type: ignore[no-any-return]


def enable(kernels: library.Library) -> None:
    """Let a library's kernels for PyTorch's own dropout have these besides."""
    library.register_torch_dispatch("aten::dropout", DTensor, _dropout, lib=kernels)
    library.register_torch_dispatch("aten::dropout_", DTensor, _dropout_, lib=kernels)


library.register_torch_dispatch("dropfast::apply", DTensor, _apply, lib=LIBRARY)
library.register_torch_dispatch("dropfast::new_state", DTensor, _new_state, lib=LIBRARY)
