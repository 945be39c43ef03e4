"""What a shared mask drops is left out of products, and nothing else changes but the order of sums."""

import math
import re
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tensors import IGNORE_THEIR_WARNINGS, TORCH_DTYPES
from thinned import EXACT_RATES, always, assert_equal, integers, is_thinned, thinned
from torch import nn
from torch.autograd import gradcheck, gradgradcheck
from torch.nn import functional

import dropfast.torch
from dropfast import Mask
from dropfast.torch import Dropout, Dropout2d, conv2d, linear

__all__ = ["always"]

pytestmark = IGNORE_THEIR_WARNINGS

SIZES = st.integers(1, 129)
RATES = st.sampled_from(EXACT_RATES)
SEEDS = st.integers(0, 2**32)


def small_integers(shape: tuple[int, ...], seed: int = 0, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.randint(-2, 3, shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


# ---- equality ------------------------------------------------------------------------------------


@given(st.tuples(SIZES, SIZES, SIZES, SIZES), st.tuples(RATES, RATES), st.integers(1, 9), SEEDS)
def test_linear_networks_are_the_dense_ones(always: None, sizes: Any, rates: Any, batch: int, seed: int) -> None:
    a, b, c, d = sizes
    dense = nn.Sequential(
        *(nn.Linear(a, b), nn.ReLU(), Dropout(rates[0], shared_axes=0)),
        *(nn.Linear(b, c, bias=False), Dropout(rates[1], noise_shape=(1, None)), nn.ReLU(), nn.Linear(c, d)),
    ).double()
    integers(dense, seed)
    assert_equal(dense, thinned(dense), small_integers((batch, a), seed), seed)


@settings(max_examples=30)
@given(st.tuples(st.integers(1, 40), st.integers(1, 40)), st.tuples(RATES, RATES), st.integers(1, 3), SEEDS)
def test_convolutions_are_the_dense_ones(always: None, sizes: Any, rates: Any, batch: int, seed: int) -> None:
    a, b = sizes
    dense = nn.Sequential(
        *(nn.Conv2d(3, a, 3, padding=1), nn.ReLU(), Dropout2d(rates[0], shared_axes=0), nn.MaxPool2d(2)),
        *(nn.Conv2d(a, b, 3, stride=2, bias=False), nn.ReLU(), Dropout(rates[1], shared_axes=(0, 2, 3))),
        *(nn.Flatten(), nn.Linear(b * 4, 5)),
    ).double()
    integers(dense, seed)
    assert_equal(dense, thinned(dense), small_integers((batch, 3, 11, 11), seed), seed)


@pytest.mark.parametrize("dtype", TORCH_DTYPES)
@pytest.mark.parametrize("rate", EXACT_RATES)
def test_dtypes(always: None, backend: str, dtype: str, rate: float) -> None:
    dense = nn.Sequential(nn.Linear(7, 9), nn.ReLU(), Dropout(rate, shared_axes=0), nn.Linear(9, 4))
    integers(dense, 0, highest=1).to(TORCH_DTYPES[dtype])
    x = small_integers((5, 7), dtype=TORCH_DTYPES[dtype]).clamp(-1, 1)
    thin = thinned(dense)
    assert_equal(dense, thin, x)
    assert is_thinned(thin(x)) == (rate > 0)


@pytest.mark.parametrize("shape", [(6, 7), (2, 3, 7), (2, 1, 3, 7)], ids=str)
def test_axes_in_front(always: None, shape: tuple[int, ...]) -> None:
    drop = Dropout(0.5, shared_axes=tuple(range(len(shape) - 1)))
    for layers in (
        (nn.Linear(7, 20), nn.ReLU(), drop, nn.Linear(20, 4)),
        (drop, nn.Linear(7, 4)),
        (nn.Linear(7, 20), drop),
    ):
        dense = integers(nn.Sequential(*layers).double(), 0)
        thin = thinned(dense)
        assert_equal(dense, thin, small_integers(shape))
        assert is_thinned(thin(small_integers(shape)))


def masks(in_units: int, out_units: int, rate: float) -> tuple[Mask, Mask]:
    return Mask((4, in_units), rate, key=3, shared_axes=0), Mask(out_units + 5, rate, key=5).window(2, out_units)


@pytest.mark.parametrize("rate", EXACT_RATES)
@pytest.mark.parametrize("which", [(True, True), (True, False), (False, True), (False, False)], ids=str)
def test_linear_and_conv2d(backend: str, rate: float, which: tuple[bool, bool]) -> None:
    """With masks of the user's own: the same parts of the dense products, and gradients that are zero elsewhere."""
    in_mask, out_mask = (mask if there else None for mask, there in zip(masks(33, 20, rate), which, strict=True))
    ins = torch.from_numpy(in_mask.kept()) if in_mask else torch.arange(33)
    outs = torch.from_numpy(out_mask.kept()) if out_mask else torch.arange(20)
    for inner in ((), (3, 2)):
        x = small_integers((4, 33, *(4,) * len(inner)))
        weight, bias = small_integers((20, 33, *inner), 1).requires_grad_(), small_integers((20,), 2).requires_grad_()
        compact = x.index_select(1, ins).requires_grad_()
        dropped = torch.zeros_like(x).index_copy(1, ins, x.index_select(1, ins)).requires_grad_()
        y = (conv2d if inner else linear)(compact, weight, bias, in_mask, out_mask)
        dense = (functional.conv2d if inner else functional.linear)(dropped, weight, bias).index_select(1, outs)
        assert torch.equal(y, dense)
        dy = small_integers(tuple(y.shape), 3)
        found, expected = (
            torch.autograd.grad(z, (its, weight, bias), dy) for z, its in ((y, compact), (dense, dropped))
        )
        assert torch.equal(found[0], expected[0].index_select(1, ins))
        assert torch.equal(found[1], expected[1])
        assert torch.equal(found[2], expected[2])


def test_flattened_channels() -> None:
    in_mask = Mask((2, 8, 3, 3), 0.5, key=1, shared_axes=(0, 2, 3))
    x, weight = small_integers((2, 8, 3, 3)), small_integers((5, 72), 1)
    compact = x[:, torch.from_numpy(in_mask.kept())]
    dropped = (dropfast.torch.apply(in_mask, x) / 2).flatten(1)
    assert torch.equal(linear(compact.flatten(1), weight.view(5, 8, 9), None, in_mask), dropped @ weight.T)


def test_conv2d_has_its_arguments() -> None:
    mask = Mask(6, 0.5, key=1)
    x, weight = small_integers((2, 3, 9, 9)), small_integers((6, 3, 3, 3), 1)
    for how in ({"stride": 2}, {"padding": 1}, {"padding": "same"}, {"dilation": 2, "stride": (1, 2)}):
        expected = functional.conv2d(x, weight, **how)[:, torch.from_numpy(mask.kept())]
        assert torch.equal(conv2d(x, weight, out_mask=mask, **how), expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_floats_differ_by_the_order_of_sums(dtype: torch.dtype) -> None:
    """By at most the bound of any two orders, 2 K eps times the sum of the terms' sizes."""
    torch.manual_seed(0)
    x, weight, bias = (
        torch.randn(64, 999, dtype=dtype),
        torch.randn(777, 999, dtype=dtype),
        torch.randn(777, dtype=dtype),
    )
    in_mask, out_mask = masks(999, 777, 0.3)
    dropped = dropfast.torch.apply(Mask((64, 999), 0.3, key=3, shared_axes=0), x)
    compact = dropped[:, torch.from_numpy(in_mask.kept())]
    outs = torch.from_numpy(out_mask.kept())
    y, dense = linear(compact, weight, bias, in_mask, out_mask), functional.linear(dropped, weight, bias)[:, outs]
    sizes = functional.linear(dropped.abs(), weight.abs(), bias.abs())[:, outs]
    assert bool(((y - dense).abs() <= 2 * 1000 * torch.finfo(dtype).eps * sizes).all())


def test_weights_of_dropped_units_are_not_looked_at() -> None:
    mask = Mask((2, 8), 0.5, key=7, shared_axes=0)
    weight = torch.ones(3, 8)
    weight[:, 1] = math.nan  # dropped
    x = torch.ones(2, 8)
    assert functional.linear(dropfast.torch.apply(mask, x), weight).isnan().all()
    assert torch.equal(linear(x[:, :4] * mask.scale, weight, in_mask=mask), torch.full((2, 3), 8.0))


# ---- derivatives ---------------------------------------------------------------------------------


def test_gradcheck() -> None:
    first, second = masks(5, 6, 0.5)
    x = torch.randn(4, 3, dtype=torch.float64, requires_grad=True)
    weights = [torch.randn(n, dtype=torch.float64, requires_grad=True) for n in ((5, 3), (5,), (6, 5), (6,))]

    def network(x: torch.Tensor, a: torch.Tensor, b: torch.Tensor, c: torch.Tensor, d: torch.Tensor) -> torch.Tensor:
        return linear(linear(x, a, b, out_mask=first).tanh(), c, d, first, second).square()

    assert gradcheck(network, (x, *weights), check_forward_ad=True, check_batched_grad=True)
    assert gradgradcheck(network, (x, *weights), check_batched_grad=True, check_fwd_over_rev=True)


def test_gradcheck_of_convolutions() -> None:
    first, second = masks(5, 6, 0.5)
    x = torch.randn(2, 2, 3, 3, dtype=torch.float64, requires_grad=True)
    weights = [
        torch.randn(n, dtype=torch.float64, requires_grad=True) for n in ((5, 2, 2, 2), (5,), (6, 5, 2, 2), (6,))
    ]

    def network(x: torch.Tensor, a: torch.Tensor, b: torch.Tensor, c: torch.Tensor, d: torch.Tensor) -> torch.Tensor:
        return conv2d(conv2d(x, a, b, out_mask=first).tanh(), c, d, first, second)

    assert gradcheck(network, (x, *weights), check_forward_ad=True, check_batched_grad=True)
    assert gradgradcheck(network, (x, *weights))


def test_weights_may_not_change_before_the_backward_pass() -> None:
    weight = torch.randn(6, 5, requires_grad=True)
    y = linear(torch.randn(2, 5), weight, out_mask=Mask(6, 0.5, key=1))
    with torch.no_grad():
        weight.mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


def test_rows_begin_at_lines_of_the_cache() -> None:
    mask = Mask((4, 100), 0.5, key=1, shared_axes=0)
    y = linear(torch.randn(4, 7), torch.randn(100, 7), out_mask=mask)
    assert y.shape == (4, len(mask.kept()))
    assert (y.data_ptr() % 64, y.stride(0) * 4 % 64) == (0, 0)
    assert linear(torch.randn(4, 7), torch.randn(3, 7), in_mask=Mask(7, 0, key=1)).is_contiguous()


# ---- faults --------------------------------------------------------------------------------------

X, W = torch.ones(4, 6), torch.ones(8, 6)
NO_MASK: Any = 3
MASK = Mask((4, 8), 0.5, key=1, shared_axes=0)
FAULTS: dict[str, tuple[Any, type[Exception], str]] = {
    "x": (lambda: linear([1.0], W), TypeError, "x must be a torch.Tensor, got list"),
    "dtype": (lambda: linear(X.double(), W), TypeError, "weight must be a dense tensor of the CPU"),
    "integers": (lambda: linear(X.int(), W), TypeError, "x must be a dense tensor of the CPU"),
    "device": (lambda: linear(X.to("meta"), W), TypeError, "x must be a dense tensor of the CPU"),
    "sparse": (lambda: linear(X.to_sparse(), W), TypeError, "x must be a dense tensor of the CPU"),
    "units": (
        lambda: linear(torch.ones(4, 7), W),
        ValueError,
        "x must have 6 units on its last axis, got the shape (4, 7)",
    ),
    "in-mask": (lambda: linear(X, W, in_mask=NO_MASK), TypeError, "in_mask must be a dropfast.Mask or None, got int"),
    "out-length": (
        lambda: linear(X, W, out_mask=Mask(7, key=1)),
        ValueError,
        "out_mask must be of 8 units, for axis 0 of weight, got one of 7",
    ),
    "in-length": (lambda: linear(X, W, in_mask=MASK), ValueError, "in_mask must be of 6 units, for axis 1 of weight"),
    "axes": (lambda: linear(X, W, out_mask=Mask((4, 8), key=1)), ValueError, "noise_shape (4, 8)"),
    "bias": (lambda: linear(X, W, torch.ones(6)), ValueError, "bias must have the shape (8,), got (6,)"),
    "vector": (lambda: linear(X, torch.ones(6)), ValueError, "weight must have at least two axes, got the shape (6,)"),
    "image": (lambda: conv2d(X, torch.ones(8, 6, 3, 3)), ValueError, "x must have four axes with 6 channels on axis 1"),
    "vmap": (
        lambda: torch.vmap(lambda x: linear(x, W))(torch.ones(2, 4, 6)),
        TypeError,
        "neither traced nor transformed",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_faults(fault: str) -> None:
    call, error, words = FAULTS[fault]
    with pytest.raises(error, match=re.escape(words)):
        call()


def test_faults_where_others_look_on() -> None:
    with pytest.raises(TypeError, match="nor under autocast"), torch.autocast("cpu"):
        linear(X, W, out_mask=MASK)
    with pytest.raises(Exception, match="thinned products cannot be compiled or exported"):
        torch.compile(lambda x: linear(x, W, out_mask=MASK), fullgraph=True, backend="eager")(X)
    with pytest.raises(RuntimeError, match="thinned products cannot be compiled or exported"):
        torch.export.export(Thinned(), (X,), strict=False)


class Thinned(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return linear(x, W, out_mask=MASK)
