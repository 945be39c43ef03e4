"""PyTorch's tensors and NumPy's arrays with the same bits, and masks from PyTorch's generator."""

from collections.abc import Callable
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import torch
from cases import DTYPES, Shape
from torch.utils._python_dispatch import TorchDispatchMode

import dropfast.torch
from dropfast import Mask

# PyTorch's own, in PyTorch's own code; their categories differ from version to version.
IGNORE_THEIR_WARNINGS = [
    pytest.mark.filterwarnings(f"ignore:{words}")
    for words in (
        r".*torch\.jit.*is deprecated",
        "The .grad attribute of a Tensor that is not a leaf",
        "The PyTorch API of nested tensors",
        "Sparse CSR tensor support is in beta state",
        r"`isinstance\(treespec, LeafSpec\)` is deprecated",
        "Attempted to insert a get_attr Node with no underlying reference",  # torch.func.linearize
    )
]

TORCH_DTYPES = {name: getattr(torch, name) for name in DTYPES}


def tensor(array: Any) -> torch.Tensor:
    """A tensor with the bits of an array."""
    if array.dtype == ml_dtypes.bfloat16:
        return torch.from_numpy(np.array(array).view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(np.array(array))


def array(tensor: torch.Tensor) -> Any:
    """An array with the bits of a tensor."""
    tensor = tensor.detach()
    if tensor.dtype is torch.bfloat16:
        return tensor.view(torch.int16).numpy().view(ml_dtypes.bfloat16)
    return tensor.numpy()


def next_key(generator: torch.Generator | None = None) -> int:
    """The key that the next dropout will take from a generator, which stays as it is."""
    copy = torch.Generator()
    copy.set_state(torch.get_rng_state() if generator is None else generator.get_state())
    return int(torch.randint(-(2**63), 2**63 - 1, (), dtype=torch.int64, generator=copy)) % 2**64


def next_mask(shape: Shape, p: float = 0.5, generator: torch.Generator | None = None, **sharing: Any) -> Mask:
    """The mask that the next dropout will have."""
    return Mask(shape, p, key=next_key(generator), **sharing)


NAMED = Mask((6, 5, 40), 0.25, key=7)
CALLS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "dropout": lambda x: dropfast.torch.dropout(x, 0.25),
    "shared": lambda x: dropfast.torch.dropout(x, 0.25, shared_axes=0),
    "Dropout1d": lambda x: dropfast.torch.Dropout1d(0.25)(x),
    "apply": lambda x: dropfast.torch.apply(NAMED, x),
}


def both_ways(call: Callable[[torch.Tensor], torch.Tensor], x: torch.Tensor) -> list[torch.Tensor]:
    """Outputs and gradients of two calls, which differ if they are random, of whichever device, on the CPU."""
    torch.manual_seed(3)
    dy = x.cpu().cos().to(x.device)
    found = []
    for _ in range(2):
        leaf = x.clone().requires_grad_()
        y = call(leaf)
        y.backward(dy)
        assert leaf.grad is not None
        found += [y.detach().cpu(), leaf.grad.cpu()]
    return found


class Seen(TorchDispatchMode):
    """A mode that only looks; where there is one, no short cut is taken."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.seen.append(str(function))
        return function(*args, **(kwargs or {}))
