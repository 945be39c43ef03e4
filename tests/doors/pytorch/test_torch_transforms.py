"""Derivatives of any order and mode, torch.func, and PyTorch's own tests of operators."""

from collections.abc import Callable

import pytest
import torch
from cases import DTYPES
from tensors import IGNORE_THEIR_WARNINGS, TORCH_DTYPES, next_mask
from torch import func, library, nn

import dropfast.torch
from dropfast import Mask

pytestmark = IGNORE_THEIR_WARNINGS

Call = Callable[[torch.Tensor], torch.Tensor]
MASK = Mask((3, 4), 0.4, key=0xFEDCBA9876543210)


def seeded(call: Call) -> Call:
    """The same mask in each call."""

    def seeded(x: torch.Tensor) -> torch.Tensor:
        torch.manual_seed(0)
        return call(x)

    return seeded


CALLS: dict[str, Call] = {
    "function": seeded(lambda x: dropfast.torch.dropout(x, 0.4)),
    "layer": seeded(dropfast.torch.Dropout(0.4)),
    "layer-inplace": seeded(lambda x: dropfast.torch.Dropout(0.4, inplace=True)(x * 1)),
    "layer-shared": seeded(dropfast.torch.Dropout(0.4, shared_axes=0)),
    "channels": seeded(dropfast.torch.Dropout1d(0.4)),
    "apply": lambda x: dropfast.torch.apply(MASK, x),
    "operator": lambda x: torch.ops.dropfast.apply(x, torch.tensor([-5, 3, 0]), (4, 1), 9 << 28),
}
RANDOM = {name: call for name, call in CALLS.items() if name not in ("apply", "operator")}


def sample(requires_grad: bool = True, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.randn((3, 4), dtype=dtype, requires_grad=requires_grad)


@pytest.mark.parametrize("call", CALLS)
def test_gradcheck(call: str) -> None:
    batched = {"check_batched_grad": True, "check_batched_forward_grad": call == "apply"}  # else torch.vmap's seeds
    assert torch.autograd.gradcheck(CALLS[call], sample(), check_forward_ad=True, **batched)
    assert torch.autograd.gradgradcheck(CALLS[call], sample(), check_fwd_over_rev=True, check_rev_over_rev=True)


@pytest.mark.parametrize("dtype", DTYPES)
def test_opcheck(dtype: str) -> None:
    state = torch.tensor([-5, 3, 17])
    for x in (sample(dtype=TORCH_DTYPES[dtype]), sample(False, TORCH_DTYPES[dtype]).t()):
        library.opcheck(torch.ops.dropfast.apply.default, (x, state, (4, 1), 1 << 31))
    library.opcheck(torch.ops.dropfast.apply.default, (sample(), state, (0, 1), 1 << 30))
    # Random ones have other results in each run.
    tests = ("test_schema", "test_faketensor")
    library.opcheck(torch.ops.dropfast.new_state.default, (sample(),), test_utils=tests)
    library.opcheck(torch.ops.dropfast.dropout.default, (sample(), 1 << 31, (0,)), test_utils=tests)


def test_apply_is_pure() -> None:
    x, state = sample(False), torch.tensor([-5, 3, 0])
    y = torch.ops.dropfast.apply(x, state, (4, 1), 1 << 31)
    assert torch.equal(torch.ops.dropfast.apply(x, state, (4, 1), 1 << 31), y)
    assert torch.equal(y, dropfast.torch.apply(Mask((3, 4), 0.5, key=2**64 - 5, draw=3), x))
    assert state.tolist() == [-5, 3, 0]


# ---- torch.func ----------------------------------------------------------------------------------


def scale_of(call: Call) -> torch.Tensor:
    return call(torch.ones(3, 4, dtype=torch.float64))


@pytest.mark.parametrize("call", CALLS)
def test_func_has_the_derivatives(call: str) -> None:
    f, x, t = CALLS[call], sample(False), sample(False)
    scale = scale_of(f)
    assert torch.equal(func.grad(lambda x: (f(x) * t).sum())(x), scale * t)
    y, pull = func.vjp(f, x)
    assert torch.equal(pull(t)[0], scale * t)
    y, tangent = func.jvp(f, (x,), (t,))
    assert torch.equal(y, f(x))
    assert torch.equal(tangent, scale * t)
    if call not in RANDOM:  # of others, PyTorch's own too, it draws another mask for each tangent
        y, push = func.linearize(f, x)
        assert torch.equal(push(t), scale * t)
    diagonal = torch.diag(scale.flatten())
    for jacobian in (func.jacrev(f)(x), func.jacfwd(f, randomness="same")(x)):
        assert torch.equal(jacobian.reshape(12, 12), diagonal)
    for outer in (func.jacrev, lambda f: func.jacfwd(f, randomness="same")):
        hessian = outer(func.jacrev(lambda x: (f(x) ** 2).sum()))(x)
        assert torch.equal(hessian.reshape(12, 12), torch.diag(2 * scale.flatten() ** 2))


@pytest.mark.parametrize("call", CALLS)
def test_functionalize(call: str) -> None:
    f, x = CALLS[call], sample(False)
    assert torch.equal(func.functionalize(f)(x), f(x))
    assert torch.equal(func.functionalize(func.grad(lambda x: f(x).sum()))(x), scale_of(f))


@pytest.mark.parametrize("call", RANDOM)
def test_vmap_knows_randomness(call: str) -> None:
    f, x = RANDOM[call], torch.ones(40, 3, 4)
    same = torch.vmap(f, randomness="same")(x)
    assert torch.equal(same, same[:1].expand_as(same))
    different = torch.vmap(f, randomness="different")(x)
    assert len({tuple(row.flatten().tolist()) for row in different}) > 4
    moved = torch.vmap(f, in_dims=2, out_dims=1, randomness="different")(x.movedim(0, 2))
    assert torch.equal(moved.movedim(1, 0), different)
    for unbatched in (lambda i: f(x[0] + i), *((lambda i: f(x[0]) + 0 * i,) if "inplace" not in call else ())):
        y = torch.vmap(unbatched, randomness="different")(torch.zeros(40))
        assert len({tuple(row.flatten().tolist()) for row in y}) > 4
    said = set()
    for function in (nn.functional.dropout, f):
        with pytest.raises(RuntimeError, match="randomness error mode") as caught:
            torch.vmap(function)(x)
        said.add(str(caught.value))
    assert len(said) == 1


def test_vmap_in_vmap() -> None:
    x, f = torch.ones(5, 6, 40), CALLS["function"]
    inner = torch.vmap(torch.vmap(f, randomness="same"), randomness="different")(x)
    assert torch.equal(inner, inner[:, :1].expand_as(inner))
    assert len({tuple(row.tolist()) for row in inner[:, 0]}) == 5
    outer = torch.vmap(torch.vmap(f, randomness="different"), randomness="same")(x)
    assert torch.equal(outer, outer[:1].expand_as(outer))
    assert len({tuple(row.tolist()) for row in outer[0]}) == 6
    both = torch.vmap(torch.vmap(f, randomness="different"), randomness="different")(x)
    assert len({tuple(row.tolist()) for row in both.flatten(0, 1)}) == 30


def test_vmap_of_a_mask_with_a_name_is_not_random() -> None:
    x = torch.randn(6, 3, 4)
    y = torch.vmap(CALLS["apply"])(x)
    assert torch.equal(y, torch.stack([CALLS["apply"](part) for part in x]))
    y = torch.vmap(CALLS["apply"], in_dims=1)(x.movedim(0, 1))
    assert torch.equal(y, torch.stack([CALLS["apply"](part) for part in x]))


@pytest.mark.parametrize("call", RANDOM)
def test_gradients_per_sample(call: str) -> None:
    f, x = RANDOM[call], torch.ones(6, 3, 4)
    grads = torch.vmap(func.grad(lambda x: (f(x) ** 2).sum()), randomness="different")(x)
    y = torch.vmap(f, randomness="different")(x)
    assert torch.equal(grads, 2 * y * y)


# ---- the engine of autograd ----------------------------------------------------------------------


@pytest.mark.parametrize("call", CALLS)
def test_compiled_autograd(call: str) -> None:
    torch._dynamo.reset()
    x = sample()
    with (
        torch._dynamo.config.patch(compiled_autograd=True),
        torch._dynamo.compiled_autograd._enable(torch.compile(backend="eager")),
    ):
        y = CALLS[call](x)
        y.sum().backward()
    assert x.grad is not None
    assert torch.equal(x.grad, scale_of(CALLS[call]))


def test_what_is_saved_for_backward() -> None:
    """PyTorch saves a number an element; here, it is a byte of small tensors and nothing of large ones."""
    saved: list[torch.Tensor] = []

    def pack(x: torch.Tensor) -> torch.Tensor:
        saved.append(x)
        return x

    x = torch.randn(1 << 20, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        nn.functional.dropout(x)
        assert [t.nbytes for t in saved] == [4 << 20]
        saved.clear()
        dropfast.torch.dropout(x)
        dropfast.torch.Dropout()(x)
        dropfast.torch.apply(Mask(1 << 20, key=1), x)
        assert saved == []
        torch.ops.dropfast.apply(x, torch.tensor([1, 2, 0]), (1,), 1 << 31)
        torch.ops.dropfast.dropout(x, 1 << 31, ())
        assert [t.numel() for t in saved] == [3, 3]
        saved.clear()
        dropfast.torch.apply(Mask(1000, key=1), x[:1000])
        assert saved == []
        dropfast.torch.dropout(x[:1000])
        assert sum(t.nbytes for t in saved) in (0, 1000)


def test_the_mask_of_the_operator_is_that_of_the_short_cut() -> None:
    x = torch.randn(30, 20)
    mask = next_mask((30, 20), 0.25, shared_axes=0)
    assert torch.equal(torch.ops.dropfast.dropout(x, 1 << 30, (0,)), dropfast.torch.apply(mask, x))
