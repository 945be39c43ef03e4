"""Tensors of every kind: ours for dense floats of the CPU however they are made, PyTorch's own code for all others."""

import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from tensors import IGNORE_THEIR_WARNINGS, Seen, next_mask
from torch import nn
from torch.autograd import forward_ad
from torch.testing._internal.two_tensor import TwoTensor

import dropfast.torch
from dropfast import Mask

pytestmark = IGNORE_THEIR_WARNINGS

CALLS: dict[str, Callable[[Any], Any]] = {
    "dropout": dropfast.torch.dropout,
    "Dropout": lambda x: dropfast.torch.Dropout()(x),
    "apply": lambda x: dropfast.torch.apply(Mask((2, 3), key=1), x),
}

# ---- ours ----------------------------------------------------------------------------------------

VIEWS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "plain": lambda x: x,
    "negative": lambda x: torch.complex(x, x).conj().imag,
    "negative-of-a-conjugate": lambda x: torch._neg_view(x),
    "real": lambda x: torch.complex(x, x).conj().real,
    "parameter": lambda x: nn.Parameter(x.detach()),
    "buffer": lambda x: nn.Buffer(x.detach()),
    "inference": lambda x: inference(x),
}


def inference(x: torch.Tensor) -> torch.Tensor:
    with torch.inference_mode():
        return x.clone()


@pytest.mark.parametrize("view", VIEWS)
def test_views_of_all_kinds_forward_and_backward(view: str) -> None:
    leaf = torch.randn(5, 7, dtype=torch.float64, requires_grad=view not in ("inference",))
    x = VIEWS[view](leaf)
    for call in (dropfast.torch.dropout, dropfast.torch.Dropout()):
        mask = next_mask((5, 7))
        y = call(x)
        want = torch.from_numpy(mask.apply(x.detach().resolve_neg().numpy()))
        assert torch.equal(y, want)
        if x.requires_grad:
            dy = VIEWS["negative"](torch.randn(5, 7, dtype=torch.float64))
            (grad,) = torch.autograd.grad(y, x, dy)
            assert torch.equal(grad, torch.from_numpy(mask.apply(dy.resolve_neg().numpy())))
    assert torch.equal(dropfast.torch.apply(mask, x), want)


def test_zero_tensors() -> None:
    zero = torch._efficientzerotensor((2, 3))
    for call in CALLS.values():
        assert torch.equal(call(zero), torch.zeros(2, 3))
    x = torch.ones(2, 3, requires_grad=True)
    y = dropfast.torch.dropout(x)
    (grad,) = torch.autograd.grad(y, x, torch._efficientzerotensor((2, 3)))
    assert torch.equal(grad, torch.zeros(2, 3))


class Logged(torch.Tensor):
    """A subclass that only counts."""

    calls = 0

    @classmethod
    def __torch_function__(cls, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        Logged.calls += function in (dropfast.torch.dropout, dropfast.torch.apply)
        return super().__torch_function__(function, types, args, kwargs or {})


@pytest.mark.parametrize("call", CALLS)
def test_modes_and_subclasses_see_the_call(call: str) -> None:
    x = torch.randn(2, 3)
    with Seen() as mode:
        y = CALLS[call](x)
    assert "dropfast.apply.default" in mode.seen
    assert y.shape == x.shape
    Logged.calls = 0
    assert type(CALLS[call](x.as_subclass(Logged))) is Logged
    assert Logged.calls == 1


@pytest.mark.parametrize("where", ["eager", "mode"])
@pytest.mark.parametrize("inplace", [False, True])
def test_tangents_are_kept(where: str, inplace: bool) -> None:
    x, t = torch.randn(5, 7), torch.randn(5, 7)
    with forward_ad.dual_level():
        mask = next_mask((5, 7))
        dual = forward_ad.make_dual(x.clone(), t.clone())
        if where == "mode":
            with Seen():
                y = dropfast.torch.dropout(dual, inplace=inplace)
        else:
            y = dropfast.torch.dropout(dual, inplace=inplace)
        primal, tangent = forward_ad.unpack_dual(y)
        assert torch.equal(primal, dropfast.torch.apply(mask, x))
        assert torch.equal(tangent, dropfast.torch.apply(mask, t))


# ---- calls that do nothing -----------------------------------------------------------------------


@pytest.mark.parametrize("inplace", [False, True])
def test_not_training_and_p_0_are_the_identity(inplace: bool) -> None:
    state = torch.get_rng_state()
    for x in (
        torch.ones(3),
        torch.ones(3, requires_grad=True),
        torch.ones(3, dtype=torch.int64),
        torch.ones(3, device="meta"),
        torch.eye(3).to_sparse(),
    ):
        assert dropfast.torch.dropout(x, 0.5, False, inplace) is x
        assert dropfast.torch.Dropout(0.5, inplace).eval()(x) is x
        assert dropfast.torch.dropout(x, 0, True, inplace) is x
        assert dropfast.torch.Dropout(0.0, inplace)(x) is x
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("p", [np.float32(0.25), np.float64(0.25), torch.tensor(0.25), torch.tensor([0.25])])
def test_p_may_be_a_scalar_of_an_array_or_a_tensor(p: Any) -> None:
    x = torch.ones(100)
    mask = next_mask((100,), 0.25)
    assert torch.equal(dropfast.torch.dropout(x, p), dropfast.torch.apply(mask, x))
    layer, mask = dropfast.torch.Dropout(p), next_mask((100,), 0.25)
    assert torch.equal(layer(x), dropfast.torch.apply(mask, x))


# ---- PyTorch's own -------------------------------------------------------------------------------


def nested(layout: torch.layout) -> torch.Tensor:
    return torch.nested.nested_tensor([torch.randn(2, 3), torch.randn(4, 3)], layout=layout, requires_grad=True)


THEIRS: dict[str, Callable[[], torch.Tensor]] = {
    "meta": lambda: torch.ones(2, 3, device="meta", requires_grad=True),
    "meta-int64": lambda: torch.ones(2, 3, device="meta", dtype=torch.int64),
    "nested-strided": lambda: nested(torch.strided),
    "nested-jagged": lambda: nested(torch.jagged),
    "sparse-coo": lambda: torch.eye(3).to_sparse(),
    "sparse-csr": lambda: torch.eye(3).to_sparse_csr(),
    "mkldnn": lambda: torch.ones(2, 3).to_mkldnn(),
    "wrapper-subclass": lambda: TwoTensor(torch.randn(2, 3), torch.randn(2, 3)),
}


def outcome(call: Callable[[torch.Tensor], torch.Tensor], kind: str) -> tuple[Any, ...]:
    """What a call gives, or says."""
    torch.manual_seed(0)
    x = THEIRS[kind]()
    try:
        y = call(x)
    except (RuntimeError, NotImplementedError, TypeError) as error:
        return type(error), str(error).splitlines()[0]
    if x.requires_grad:
        y.backward(y.detach())
        y = x.grad
    found: Any = None
    if isinstance(y, TwoTensor):
        found = y.a.tolist(), y.b.tolist()
    elif not y.is_meta:
        found = [part.tolist() for part in y.unbind()] if y.is_nested else y.to_dense().tolist()
    return type(y), y.dtype, y.layout, y.device, found


@pytest.mark.parametrize("kind", THEIRS)
def test_what_is_not_ours_is_pytorchs_own(kind: str) -> None:
    want = outcome(nn.functional.dropout, kind)
    assert outcome(dropfast.torch.dropout, kind) == want
    assert outcome(dropfast.torch.Dropout(), kind) == want
    if kind != "wrapper-subclass":
        with pytest.raises((TypeError, ValueError), match=r"^input must (be dense|be on the CPU)"):
            dropfast.torch.apply(Mask((2, 3), key=1), THEIRS[kind]())


@pytest.mark.parametrize("inplace", [False, True])
def test_axes_are_shared_elsewhere_too(inplace: bool) -> None:
    x = TwoTensor(torch.randn(50, 4), torch.randn(50, 4))
    y = dropfast.torch.dropout(TwoTensor(x.a.clone(), x.b.clone()), 0.5, inplace=inplace, shared_axes=1)
    for part, of in ((y.a, x.a), (y.b, x.b)):
        kept = part[:, 0] != 0
        assert 0 < int(kept.sum()) < 50
        assert torch.equal(part, of * 2 * kept[:, None])
    meta = torch.ones(2, 3, device="meta")
    assert dropfast.torch.dropout(meta, shared_axes=0).device.type == "meta"
    assert dropfast.torch.dropout(meta, noise_shape=(None, 1)).shape == (2, 3)
    for bad in ((2, 2), (2,)):
        with pytest.raises(ValueError, match=r"^noise_shape must have one entry an axis.*for the shape \(2, 3\) got"):
            dropfast.torch.dropout(meta, noise_shape=bad)
    dense = "axes can be shared only in dense tensors, got a Tensor of torch.float32, torch.sparse_coo, on cpu"
    with pytest.raises(ValueError, match=re.escape(dense)):
        dropfast.torch.dropout(torch.eye(3).to_sparse(), shared_axes=0)
    ours = "^generator can be given only for tensors that dropfast takes, got a Tensor of .*, on meta$"
    with pytest.raises(ValueError, match=ours):
        dropfast.torch.dropout(meta, generator=torch.Generator())


# ---- errors --------------------------------------------------------------------------------------


@pytest.mark.parametrize("call", CALLS)
def test_bad_tensors(call: str) -> None:
    allowed = "torch.float16, torch.bfloat16, torch.float32 or torch.float64"
    for dtype in (torch.int64, torch.int8, torch.bool, torch.complex64, torch.float8_e4m3fn):
        with pytest.raises(TypeError, match=f"^input must have dtype {allowed}, got {dtype}$"):
            CALLS[call](torch.zeros(2, 3, dtype=dtype))
    for bad in (np.ones((2, 3), np.float32), [1.0], None):
        with pytest.raises(TypeError, match=f"^input must be a torch.Tensor, got {type(bad).__name__}$"):
            CALLS[call](bad)


def test_bad_masks() -> None:
    with pytest.raises(ValueError, match=re.escape("input must have the mask's shape (2, 3), got (3, 2)")):
        dropfast.torch.apply(Mask((2, 3), key=1), torch.ones(3, 2))
    not_a_mask: Any = 1
    with pytest.raises(TypeError, match=r"^mask must be a dropfast\.Mask, got int$"):
        dropfast.torch.apply(not_a_mask, torch.ones(3, 2))


# ---- in place ------------------------------------------------------------------------------------


def test_in_place_writes_and_differentiates() -> None:
    leaf = torch.randn(50, 4, requires_grad=True)
    layer = dropfast.torch.Dropout(0.5, inplace=True)
    h = leaf * 3
    mask = next_mask((50, 4))
    y = layer(h)
    assert y is h
    assert torch.equal(y, dropfast.torch.apply(mask, leaf * 3))
    y.sum().backward()
    assert leaf.grad is not None
    assert torch.equal(leaf.grad, (y != 0) * 6.0)
    with torch.no_grad():
        z = torch.ones(50)
        assert dropfast.torch.dropout(z, inplace=True) is z
        assert 0 < int((z == 0).sum()) < 50
    with torch.inference_mode():
        z = torch.ones(50)
        assert dropfast.torch.dropout(z, inplace=True) is z
        assert 0 < int((z == 0).sum()) < 50


def test_in_place_is_noticed_by_autograd() -> None:
    h = torch.randn(8, requires_grad=True).exp()  # keeps its result for the backward pass
    with torch.no_grad():
        dropfast.torch.dropout(h, inplace=True)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        h.sum().backward()


@pytest.mark.parametrize("which", ["leaf", "view"])
def test_in_place_on_a_leaf_is_refused_in_torchs_words(which: str) -> None:
    x = torch.ones(4, requires_grad=True)
    argument = x if which == "leaf" else x[:2]
    for function in (nn.functional.dropout, dropfast.torch.dropout):
        words = (
            f"a {'view of a ' if which == 'view' else ''}leaf Variable that requires grad is being used in an in-place"
        )
        with pytest.raises(RuntimeError, match=words):
            function(argument, 0.5, True, True)
    assert torch.equal(x, torch.ones(4))
