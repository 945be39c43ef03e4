"""enable(): every dropout of PyTorch on the CPU has dropfast's masks, whoever calls it; and nothing else changes."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch._functorch.config
import torch.compiler.config
from expected import DEFAULT_AND_TWIN, using
from tensors import IGNORE_THEIR_WARNINGS
from torch import func, fx, nn
from torch.autograd import forward_ad
from torch.fx.experimental.proxy_tensor import make_fx
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

import dropfast.torch

pytestmark = IGNORE_THEIR_WARNINGS

Call = Callable[[torch.Tensor], torch.Tensor]


@pytest.fixture(autouse=True, params=DEFAULT_AND_TWIN)
def _enabled(request: pytest.FixtureRequest) -> Iterator[None]:
    """Kernels in C++ where these are compiled, and those in Python with the twin."""
    torch._dynamo.reset()
    with using(request.param), dropfast.torch.enable():
        yield
    assert not is_ours(functional.dropout)


def is_ours(call: Call) -> bool:
    """PyTorch multiplies by 0 what it drops, and so gets -0.0 here."""
    y = call(torch.full((200,), -1.0))
    dropped = y[y == 0]
    assert 0 < len(dropped) < 200
    return not bool(dropped.signbit().any())


# ---- on and off ----------------------------------------------------------------------------------


def test_on_and_off() -> None:
    assert is_ours(functional.dropout)
    dropfast.torch.disable()
    assert not is_ours(functional.dropout)
    tag = torch.compiler.config.cache_key_tag
    dropfast.torch.disable()
    dropfast.torch.enable()
    assert torch.compiler.config.cache_key_tag != tag
    with dropfast.torch.enable():
        assert is_ours(functional.dropout)
    assert is_ours(functional.dropout)  # it was before the block
    dropfast.torch.disable()
    with dropfast.torch.enable(), dropfast.torch.enable():
        assert is_ours(functional.dropout)
    assert not is_ours(functional.dropout)
    assert torch.compiler.config.cache_key_tag == tag


# ---- who is reached ------------------------------------------------------------------------------


SEQUENCE = torch.randn(5, 3, 8, generator=torch.Generator().manual_seed(0))


def call_of(module: nn.Module, *args: torch.Tensor, **options: Any) -> Callable[[], Any]:
    return lambda: module(*args, **options)


# The number of masks, and what makes the call.
CALLERS: dict[str, tuple[int, Callable[[], Callable[[], Any]]]] = {
    "function": (1, lambda: lambda: functional.dropout(SEQUENCE)),
    "function-in-place": (1, lambda: lambda: functional.dropout(SEQUENCE.clone(), inplace=True)),
    "torch.dropout": (1, lambda: lambda: torch.dropout(SEQUENCE, 0.5, True)),
    "native": (1, lambda: lambda: torch.native_dropout(SEQUENCE, 0.5, True)),
    "module": (1, lambda: call_of(nn.Dropout(), SEQUENCE)),
    "attention": (1, lambda: lambda: functional.scaled_dot_product_attention(*[SEQUENCE] * 3, dropout_p=0.1)),
    "MultiheadAttention": (1, lambda: call_of(nn.MultiheadAttention(8, 2, dropout=0.1), *[SEQUENCE] * 3)),
    "LSTM": (2, lambda: call_of(nn.LSTM(8, 4, num_layers=3, dropout=0.5), SEQUENCE)),
    "GRU": (2, lambda: call_of(nn.GRU(8, 4, num_layers=3, dropout=0.5), SEQUENCE)),
    "RNN": (2, lambda: call_of(nn.RNN(8, 4, num_layers=3, dropout=0.5), SEQUENCE)),
    "TransformerEncoderLayer": (4, lambda: call_of(nn.TransformerEncoderLayer(8, 2, 16), SEQUENCE)),
    "TransformerDecoderLayer": (6, lambda: call_of(nn.TransformerDecoderLayer(8, 2, 16), SEQUENCE, SEQUENCE)),
    "script": (1, lambda: call_of(torch.jit.script(nn.Dropout()), SEQUENCE)),
    "inference": (1, lambda: torch.inference_mode()(lambda: functional.dropout(torch.ones(4)))),
    "bfloat16": (1, lambda: lambda: functional.dropout(SEQUENCE.bfloat16())),
    "autocast": (1, lambda: torch.autocast("cpu")(lambda: functional.dropout(SEQUENCE))),
    "negative": (1, lambda: lambda: functional.dropout(torch.complex(SEQUENCE, SEQUENCE).conj().imag)),
    "nested": (1, lambda: lambda: functional.dropout(torch.nested.nested_tensor([SEQUENCE, SEQUENCE]))),
    "jagged": (1, lambda: lambda: functional.dropout(torch.nested.nested_tensor([SEQUENCE], layout=torch.jagged))),
    "evaluation": (0, lambda: call_of(nn.TransformerEncoderLayer(8, 2, 16).eval(), SEQUENCE)),
    "p-0": (0, lambda: call_of(nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0), SEQUENCE)),
    "meta": (0, lambda: lambda: functional.dropout(torch.ones(4, device="meta"))),
}


@pytest.mark.parametrize("caller", CALLERS)
def test_callers_take_one_number_of_the_generator_for_each_mask(caller: str) -> None:
    masks, make = CALLERS[caller]
    call = make()
    torch.manual_seed(3)
    call()
    state = torch.get_rng_state()
    torch.manual_seed(3)
    for _ in range(masks):
        torch.randint(-(2**63), 2**63 - 1, ())
    assert torch.equal(torch.get_rng_state(), state)


def test_calls_that_do_nothing_return_their_input() -> None:
    x = torch.ones(3, requires_grad=True)
    for inplace in (False, True):
        assert functional.dropout(x, 0.5, False, inplace) is x
        assert functional.dropout(x, 0.0, True, inplace) is x
    empty = torch.ones(0, 3)
    assert functional.dropout(empty) is empty
    for train in (True, False):
        y, keep = torch.native_dropout(empty if train else torch.ones(3), 0.5, train)
        assert y.shape == keep.shape
        assert bool(keep.all())


def test_errors_are_pytorchs() -> None:
    with pytest.raises(RuntimeError, match=r"^dropout probability has to be between 0 and 1, but got 1\.5$"):
        torch.dropout(torch.ones(3), 1.5, True)
    with pytest.raises(ValueError, match=r"^dropout probability has to be between 0 and 1, but got -0\.5$"):
        functional.dropout(torch.ones(3), -0.5)
    with pytest.raises(RuntimeError, match="result type Float can't be cast to the desired output type Long"):
        functional.dropout(torch.ones(3, dtype=torch.int64))
    x = torch.ones(4, requires_grad=True)
    with pytest.raises(RuntimeError, match="a leaf Variable that requires grad is being used in an in-place"):
        functional.dropout(x, inplace=True)
    assert torch.equal(x, torch.ones(4))


# ---- modes, tracers, compilers -------------------------------------------------------------------


def seeded(x: torch.Tensor) -> torch.Tensor:
    """The same mask in each call."""
    torch.manual_seed(0)
    return functional.dropout(x, 0.4)


def test_derivatives() -> None:
    x = torch.randn(3, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(seeded, x, check_forward_ad=True, check_batched_grad=True)
    assert torch.autograd.gradgradcheck(seeded, x, check_fwd_over_rev=True, check_rev_over_rev=True)
    x = x.detach()
    scale = seeded(torch.ones_like(x))
    torch.testing.assert_close(func.grad(lambda x: seeded(x).sum())(x), scale)
    y, tangent = func.jvp(seeded, (x,), (2 * x,))
    torch.testing.assert_close(y, scale * x)
    torch.testing.assert_close(tangent, scale * 2 * x)
    hessian = func.jacrev(func.jacrev(lambda x: (seeded(x) ** 2).sum()))(x[0])
    torch.testing.assert_close(hessian, torch.diag(2 * seeded(torch.ones_like(x[0])) ** 2))
    torch.testing.assert_close(func.functionalize(seeded)(x), scale * x)
    with forward_ad.dual_level():
        y, tangent = forward_ad.unpack_dual(seeded(forward_ad.make_dual(x, 3 * x)))
        assert torch.equal(tangent, seeded(3 * x))


def test_vmap_knows_randomness() -> None:
    x = torch.ones(40, 12)
    same = torch.vmap(functional.dropout, randomness="same")(x)
    assert torch.equal(same, same[:1].expand_as(same))
    different = torch.vmap(functional.dropout, randomness="different")(x)
    assert len({tuple(row.tolist()) for row in different}) > 20
    assert is_ours(lambda x: torch.vmap(functional.dropout, randomness="different")(x.view(2, 100)).view(-1))
    with pytest.raises(RuntimeError, match="randomness error mode"):
        torch.vmap(functional.dropout)(x)


@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpoints(reentrant: bool) -> None:
    x = torch.randn(30, 40, requires_grad=True)
    y = checkpoint(lambda x: functional.dropout(x.sin()), x, use_reentrant=reentrant)
    torch.rand(1)
    y.sum().backward()
    assert x.grad is not None
    assert torch.equal(x.grad, x.cos() * 2 * (y != 0))


@pytest.mark.parametrize("n", [4, 4000], ids=["small", "large"])
@pytest.mark.parametrize("backend_of_torch", ["eager", "aot_eager", "inductor"])
def test_compiled_code(backend_of_torch: str, n: int) -> None:
    compiled = torch.compile(
        lambda x: functional.dropout(x.sin() + 2) * 3, fullgraph=True, backend=backend_of_torch, dynamic=False
    )
    x = torch.randn(n, 30, requires_grad=True)
    first, second = compiled(x), compiled(x)
    assert not torch.equal(first, second)
    dropped = first == 0
    (dx,) = torch.autograd.grad(first.sum(), x)
    torch.testing.assert_close(dx, torch.where(dropped, 0, 6 * x.cos()))
    assert 0.3 < float(dropped.float().mean()) < 0.7


@pytest.mark.parametrize("budget", [1.0, 0.9, 0.5, 0.1])
@pytest.mark.parametrize("n", [8, 128], ids=["small", "large"])
def test_memory_budgets_do_not_mix_masks(n: int, budget: float) -> None:
    """Where PyTorch's own gives half of the gradient another mask."""
    x, w = torch.randn(n, 128, requires_grad=True), torch.randn(n, 128, requires_grad=True)
    with torch._functorch.config.patch(activation_memory_budget=budget):
        y = torch.compile(lambda x, w: functional.dropout(x.sin() * w), fullgraph=True)(x, w)
        dx, dw = torch.autograd.grad(y.sum(), (x, w))
    scale = 2.0 * (y != 0)
    torch.testing.assert_close(dw, scale * x.sin())
    torch.testing.assert_close(dx, scale * w * x.cos())


def test_no_memory_at_all_is_refused() -> None:
    for x in (torch.ones(8, requires_grad=True), torch.ones(1 << 14, requires_grad=True)):
        with torch._functorch.config.patch(activation_memory_budget=0.0):
            with pytest.raises(
                Exception, match=r"dropout cannot be compiled with torch\._functorch\.config\.activation_mem"
            ):
                torch.compile(functional.dropout)(x)
            assert functional.dropout(x).shape == x.shape


@pytest.mark.parametrize("n", [4, 4000], ids=["small", "large"])
@pytest.mark.parametrize("backend_of_torch", ["aot_eager", "inductor"])
def test_checkpoints_inside_of_compiled_code(backend_of_torch: str, n: int) -> None:
    def region(x: torch.Tensor) -> torch.Tensor:
        return functional.dropout(x.sin() + 2) * 3

    x = torch.randn(n, 30, requires_grad=True)
    y = torch.compile(lambda x: checkpoint(region, x, use_reentrant=False), fullgraph=True, backend=backend_of_torch)(x)
    torch.rand(1)
    (dx,) = torch.autograd.grad(y.sum(), x)
    torch.testing.assert_close(dx, torch.where(y == 0, 0, 6 * x.cos()))


def test_dynamic_shapes_and_no_recompilation() -> None:
    compiled = torch.compile(functional.dropout, fullgraph=True, dynamic=True, backend="aot_eager")
    from torch._dynamo.utils import counters

    counters.clear()
    for n in (200, 300, 300, 200):
        x = torch.ones(n)
        torch.manual_seed(n)
        y = compiled(x)
        torch.manual_seed(n)
        assert torch.equal(y, functional.dropout(x))
    assert counters["stats"]["unique_graphs"] == 1


def test_what_was_compiled_before_is_not_taken_for_what_is_compiled_now() -> None:
    """Not from Python's table of kernels, and not from the disk."""

    def drop(x: torch.Tensor) -> torch.Tensor:
        return functional.dropout(x.expand(200, 200)) * 1

    def compiled_is_ours() -> bool:
        torch._dynamo.reset()
        return is_ours(lambda x: torch.compile(drop, fullgraph=True)(x)[0])

    for _ in range(2):
        assert compiled_is_ours()
        dropfast.torch.disable()
        assert not compiled_is_ours()
        dropfast.torch.enable()
    dropfast.torch.disable()


def test_graphs_have_pytorchs_operators() -> None:
    """So that they run where there is no dropfast."""
    x, module = torch.ones(200), nn.Dropout()
    graphs: list[fx.GraphModule] = [
        make_fx(module, tracing_mode=mode, pre_dispatch=pre_dispatch)(x)
        for mode in ("real", "symbolic")
        for pre_dispatch in (False, True)
    ]
    for strict in (True, False):
        exported = torch.export.export(module, (x,), strict=strict)
        graphs += [exported.module(), exported.run_decompositions().module()]
        assert torch.equal(torch.export.export(nn.Dropout().eval(), (x,), strict=strict).module()(x), x)
    graphs.append(fx.symbolic_trace(nn.Sequential(module)))
    for graph in graphs:
        assert "dropfast" not in graph.code
        assert is_ours(graph)
        dropfast.torch.disable()
        assert not is_ours(graph)
        dropfast.torch.enable()
    traced = torch.jit.trace(module, x, check_trace=False)
    assert "dropfast" not in traced.code
    assert is_ours(traced)
    dropfast.torch.disable()


def test_compiled_autograd() -> None:
    x = torch.randn(30, 40, requires_grad=True)
    with torch._dynamo.compiled_autograd._enable(torch.compile(backend="eager")):
        y = functional.dropout(x)
        y.sum().backward()
    assert x.grad is not None
    assert torch.equal(x.grad, 2.0 * (y != 0))
