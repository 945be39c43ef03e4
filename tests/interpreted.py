"""The kernel for GPUs without one: by Triton's interpreter, which has to be asked for before Triton is imported.

`TRITON_INTERPRET=1 python interpreted.py` prints what went wrong in each test, None where nothing did, as JSON.
"""

import json
import math
import warnings
from typing import Any

import numpy as np
import torch
from cases import DTYPES, MODES, RATES, Array, Shape, values
from expected import assert_same_bits
from outcomes import outcomes
from tensors import Seen, array, next_mask, tensor

import dropfast.torch
from dropfast import Mask
from dropfast.torch import _devices, _triton

KEY, DRAW = 2**64 - 5, 2**32 - 3
SHAPES: list[Shape] = [(5, 3, 70), (2, 3, 4, 5)]
UNSHARED_OR_NOT: list[dict[str, Any]] = [{}, {"shared_axes": 0}, {"shared_axes": -1}]
ODD_RATES = [1 / 3, 0.123, 0.65, 1 - 2**-20]


def check(mask: Mask, x: Array, got: torch.Tensor | None = None) -> None:
    y = _triton.apply(tensor(x) if got is None else got, mask._recipe)
    assert_same_bits(array(y.contiguous()), mask.apply(x))


def test_dtypes() -> None:
    for dtype in DTYPES.values():
        for sharing in UNSHARED_OR_NOT:
            check(Mask((3, 300), 0.1, key=KEY, draw=DRAW, **sharing), values((3, 300), dtype))


def test_modes() -> None:
    for shape in SHAPES:
        for sharing in MODES.values():
            check(Mask(shape, 0.1, key=KEY, draw=DRAW, **sharing(shape)), values(shape, DTYPES["float16"]))


def test_rates() -> None:
    for rate in (*RATES.values(), *ODD_RATES):
        check(Mask((9, 70), rate, key=KEY), values((9, 70), DTYPES["float64"]))


def test_sizes() -> None:
    """Around blocks, and more than one program."""
    for n in (0, 1, 31, 32, 33, 127, 128, 129, 16385):
        check(Mask(n, 0.5, key=KEY), values((n,), DTYPES["float32"]))
    check(Mask((1500, 2), 0.25, key=KEY, shared_axes=1), values((1500, 2), DTYPES["float32"]))
    check(Mask((2, 2500), 0.25, key=KEY, shared_axes=1), values((2, 2500), DTYPES["float32"]))
    check(Mask((), 0.5, key=1), values((), DTYPES["float32"]))


def test_windows() -> None:
    """Beyond 2**32 elements, and where the number of a block has a high word."""
    for whole, start in (
        ((2**33, 300), (2**32 + 1, 37)),
        ((2**40,), (2**39 - 100,)),
        ((2**10, 2**20, 2**10), (2**9 - 1, 2**20 - 3, 2**10 - 70)),
        ((2**62, 2), (2**62 - 5, 0)),
    ):
        for sharing in UNSHARED_OR_NOT:
            shape = tuple(min(7, n - first) if n > 300 else n - first for n, first in zip(whole, start, strict=True))
            if len(shape) == 1:
                shape = (300,)
            mask = Mask(whole, 0.3, key=KEY, draw=DRAW, **sharing).window(start, shape)
            check(mask, values(shape, DTYPES["float32"]))


def test_memory_layouts() -> None:
    """The mask follows the index; the result lies as PyTorch's own would."""
    shape = (2, 3, 4, 40)
    x = values(shape, DTYPES["float32"])
    same = tensor(x)
    wide = torch.full((2, 3, 8, 40), math.nan)
    wide[:, :, ::2] = same
    layouts: dict[str, Any] = {
        "channels-last": same.to(memory_format=torch.channels_last),
        "transposed": same.transpose(1, 3).contiguous().transpose(1, 3),
        "reversed": same.permute(3, 2, 1, 0).contiguous().permute(3, 2, 1, 0),
        "with-gaps": wide[:, :, ::2],
    }
    for mode in ("per-sample", "shared-first", "spatial"):
        mask = Mask(shape, 0.5, key=KEY, **MODES[mode](shape))
        for name, laid in layouts.items():
            before = laid.clone()
            y = _triton.apply(laid, mask._recipe)
            assert y.stride() == torch.empty_like(laid).stride(), name
            assert_same_bits(array(y.contiguous()), mask.apply(x))
            assert_same_bits(array(laid.contiguous()), array(before.contiguous()))
    row = values((1, 40), DTYPES["float32"])
    check(Mask((6, 40), 0.3, key=KEY), np.ascontiguousarray(np.broadcast_to(row, (6, 40))), tensor(row).expand(6, 40))


def test_the_operator_of_gpus() -> None:
    """The CPU is a GPU, by force: a call, forward and backward."""
    others = torch.library.Library("dropfast", "IMPL")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # there is a kernel already, which is the point
        others.impl("apply", _devices.apply_on_gpu, "CPU")
    x = torch.randn(3, 70)
    mask = next_mask((3, 70), 0.25)
    want = torch.from_numpy(mask.apply(x.numpy()))
    leaf = torch.nn.Parameter(x)
    with Seen():
        y = dropfast.torch.dropout(leaf, 0.25)
        y.backward(x)
    assert torch.equal(y, want)
    assert leaf.grad is not None
    assert torch.equal(leaf.grad, want)
    many = torch.vmap(dropfast.torch.dropout, randomness="different")(x)
    assert not torch.equal(many[0] == 0, many[1] == 0)
    others._destroy()


if __name__ == "__main__":
    np.seterr(all="ignore")  # inf and NaN are meant
    print(json.dumps(outcomes(globals())))
