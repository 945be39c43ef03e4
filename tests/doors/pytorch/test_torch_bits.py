"""dropfast.torch has the bits of NumPy: forward and backward, for any strides, in shards, with any key."""

from collections.abc import Callable
from typing import Any

import expected
import numpy as np
import pytest
import torch
from cases import DTYPES, MODES, RATES, Shape, values
from expected import assert_same_bits
from tensors import TORCH_DTYPES, array, next_key, next_mask, tensor
from torch import nn

import dropfast.torch
from dropfast import Mask

KEY = 0xFEDCBA9876543210  # above 2**63, where a signed number would be negative


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("rate", RATES)
def test_apply_has_the_bits_of_numpy(backend: str, dtype: str, rate: str) -> None:
    shape = (33, 5, 7)
    mask, x = Mask(shape, RATES[rate], key=KEY, draw=3), values(shape, DTYPES[dtype])
    y = dropfast.torch.apply(mask, tensor(x))
    assert y.dtype is TORCH_DTYPES[dtype]
    assert_same_bits(array(y), mask.apply(x))
    assert_same_bits(array(y), expected.output(x, expected.keep(shape, RATES[rate], KEY, 3), RATES[rate]))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("mode", MODES)
def test_gradient_is_the_same_mask(backend: str, mode: str, dtype: str) -> None:
    shape = (6, 4, 5, 3)
    sharing = MODES[mode](shape)
    x, dy = tensor(np.ones(shape)).to(TORCH_DTYPES[dtype]).requires_grad_(), values(shape, DTYPES[dtype])
    mask = next_mask(shape, 0.3, **sharing)
    for y in (dropfast.torch.dropout(x, 0.3, **sharing), dropfast.torch.apply(mask, x)):
        (grad,) = torch.autograd.grad(y, x, tensor(dy))
        assert_same_bits(array(grad), mask.apply(dy))


VIEWS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "channels-last": lambda x: x.contiguous(memory_format=torch.channels_last),
    "transposed": lambda x: x.transpose(0, 3).contiguous().transpose(0, 3),
    "strided": lambda x: x.repeat_interleave(2, 3)[..., ::2],
    "expanded": lambda x: x[:1].expand_as(x),
}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("view", VIEWS)
def test_strides_do_not_matter(view: str, dtype: str) -> None:
    shape = (4, 3, 5, 6)
    x = VIEWS[view](tensor(values(shape, DTYPES[dtype])))
    mask = Mask(shape, 0.25, key=KEY)
    y = dropfast.torch.apply(mask, x)
    assert_same_bits(array(y), mask.apply(np.array(array(x), order="C")))
    if view == "channels-last":
        assert y.is_contiguous(memory_format=torch.channels_last)
    layer, mask = dropfast.torch.Dropout2d(0.5), next_mask(shape, shared_axes=(2, 3))
    assert_same_bits(array(layer(x)), array(dropfast.torch.apply(mask, x.contiguous())))


@pytest.mark.parametrize("shape", [(), (0,), (3, 0, 2), (1,)], ids=str)
def test_shapes_without_much(shape: Shape) -> None:
    x = torch.ones(shape, requires_grad=True)
    mask = Mask(shape, 0.5, key=1)
    for y in (dropfast.torch.apply(mask, x), dropfast.torch.dropout(x)):
        (grad,) = torch.autograd.grad(y, x, torch.ones(shape))
        assert grad.shape == y.shape == shape
    assert_same_bits(array(dropfast.torch.apply(mask, x)), mask.apply(np.ones(shape, np.float32)))


def test_shards_equal_the_whole() -> None:
    whole, x = Mask((64, 48), 0.3, key=KEY, draw=9), torch.randn(64, 48, requires_grad=True)
    y = dropfast.torch.apply(whole, x)
    parts = [
        dropfast.torch.apply(whole.window((row, column), (16, 24)), x[row : row + 16, column : column + 24])
        for row in range(0, 64, 16)
        for column in (0, 24)
    ]
    pairs = [torch.cat(parts[i : i + 2], 1) for i in range(0, 8, 2)]
    assert torch.equal(torch.cat(pairs), y)


@pytest.mark.parametrize("sharing", [{}, {"shared_axes": 0}, {"shared_axes": (0, -1)}, {"noise_shape": (None, 1, 6)}])
def test_function_and_layer_have_the_mask_of_the_next_key(sharing: dict[str, Any]) -> None:
    x = torch.randn(5, 4, 6)
    for call in (
        lambda x: dropfast.torch.dropout(x, 0.4, **sharing),
        dropfast.torch.Dropout(0.4, **sharing),
    ):
        mask = next_mask((5, 4, 6), 0.4, **sharing)
        assert torch.equal(call(x), dropfast.torch.apply(mask, x))


def test_keys_have_all_64_bits() -> None:
    keys = []
    for seed in range(64):
        generator = torch.Generator().manual_seed(seed)
        keys.append(next_key(generator))
        y = dropfast.torch.dropout(torch.ones(200), generator=generator)
        assert torch.equal(y, dropfast.torch.apply(Mask(200, key=keys[-1]), torch.ones(200)))
    seen = 0
    for key in keys:
        seen |= key
    assert seen == 2**64 - 1


@pytest.mark.parametrize("p", [0, 1, 0.0, 1.0])
def test_p_at_its_ends(p: float) -> None:
    x = torch.tensor([1.0, -1.0, torch.inf, torch.nan])
    y = dropfast.torch.dropout(x, p)
    assert torch.equal(y.nan_to_num(7.0), (x if p == 0 else torch.zeros(4)).nan_to_num(7.0))


def test_dropped_is_plus_zero_whatever_it_was() -> None:
    """The difference from torch, where these give NaN and -0."""
    x = torch.tensor([-1.0, torch.inf, -torch.inf, torch.nan]).repeat(64)
    y = dropfast.torch.dropout(x)
    dropped = torch.from_numpy(~expected.bits(array(y)).astype(bool))  # all bits are 0
    assert 64 < int(dropped.sum()) < 192
    assert not (y[~dropped] == 0).any()
    assert nn.functional.dropout(x).isnan().sum() > 64
