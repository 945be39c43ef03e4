"""torch.compile: full graphs, compiled once, with the masks and the gradients of eager mode."""

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
import torch._functorch.config
from tensors import IGNORE_THEIR_WARNINGS
from torch import func, nn
from torch._dynamo.utils import counters
from torch.autograd import forward_ad
from torch.utils.checkpoint import checkpoint

import dropfast.torch
from dropfast import Mask

pytestmark = IGNORE_THEIR_WARNINGS

Call = Callable[[torch.Tensor], torch.Tensor]
BACKENDS = ("eager", "aot_eager", "inductor")


@pytest.fixture(autouse=True)
def _fresh() -> None:
    torch._dynamo.reset()
    counters.clear()


CALLS: dict[str, Callable[[], Call]] = {
    "function": lambda: lambda x: dropfast.torch.dropout(x, 0.3),
    "function-shared": lambda: lambda x: dropfast.torch.dropout(x, 0.3, shared_axes=(0, -1)),
    "function-noise-shape": lambda: lambda x: dropfast.torch.dropout(x, 0.3, noise_shape=(None, 1)),
    "function-inplace": lambda: lambda x: dropfast.torch.dropout(x * 1, 0.3, inplace=True),
    "layer": lambda: dropfast.torch.Dropout(0.3),
    "layer-shared": lambda: dropfast.torch.Dropout(0.3, shared_axes=0),
    "layer-inplace": lambda: nn.Sequential(nn.Identity(), Lambda(lambda x: x * 1), dropfast.torch.Dropout(0.3, True)),
    "channels": lambda: dropfast.torch.Dropout1d(0.3),
    "two": lambda: nn.Sequential(dropfast.torch.Dropout(0.3), dropfast.torch.Dropout(noise_shape=(None, 1))),
    "apply": lambda: partial(dropfast.torch.apply, Mask((8, 5), 0.3, key=7, draw=2**32 - 1)),
    "apply-window": lambda: partial(dropfast.torch.apply, Mask((9, 9), key=2**64 - 1).window((1, 2), (8, 5))),
}


class Lambda(nn.Module):
    def __init__(self, function: Call) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.function(x)


@pytest.mark.parametrize("backend_of_torch", BACKENDS)
@pytest.mark.parametrize("call", CALLS)
def test_compiled_calls_are_the_eager_ones(call: str, backend_of_torch: str) -> None:
    eager = CALLS[call]()
    compiled = torch.compile(eager, fullgraph=True, backend=backend_of_torch)
    lengths = (8, 8, 8) if call.startswith("apply") else (8, 8, 8, 12, 16, 20)
    for step, n in enumerate(lengths):
        x, dy = torch.randn(n, 5, requires_grad=True), torch.randn(n, 5)
        outcomes = []
        for function in (compiled, eager):
            torch.manual_seed(step)
            y = function(x)
            outcomes += [y, torch.rand(1), torch.autograd.grad(y, x, dy)[0]]
        assert all(torch.equal(a, b) for a, b in zip(outcomes[:3], outcomes[3:], strict=True))
    # One graph for the first length, one for any: none for the steps.
    assert counters["stats"]["unique_graphs"] == len(set(lengths[:4]))


@pytest.mark.parametrize("backend_of_torch", BACKENDS)
def test_dynamic_shapes_at_once(backend_of_torch: str) -> None:
    eager = nn.Sequential(dropfast.torch.Dropout(0.3, shared_axes=0), dropfast.torch.Dropout1d())
    compiled = torch.compile(eager, fullgraph=True, backend=backend_of_torch, dynamic=True)
    for n in (8, 12):
        x = torch.ones(n, 5)
        torch.manual_seed(n)
        y = compiled(x)
        torch.manual_seed(n)
        assert torch.equal(y, eager(x))
    assert counters["stats"]["unique_graphs"] == 1


def test_modes_and_rates_that_change() -> None:
    layer = dropfast.torch.Dropout(0.3)
    compiled, x = torch.compile(layer, fullgraph=True, backend="aot_eager"), torch.ones(64)
    for p in (0.3, 0.0, 0.5, 1.0):
        layer.p = p
        torch.manual_seed(1)
        y = compiled(x)
        torch.manual_seed(1)
        assert torch.equal(y, layer(x))
    layer.eval()
    assert torch.equal(compiled(x), x)


def test_two_calls_in_a_graph_have_two_masks() -> None:
    for backend_of_torch in BACKENDS:
        compiled = torch.compile(
            lambda x: torch.stack([dropfast.torch.dropout(x), dropfast.torch.dropout(x)]), backend=backend_of_torch
        )
        a, b = compiled(torch.ones(100))
        assert not torch.equal(a, b)


def test_a_generator_in_a_graph_is_refused() -> None:
    generator = torch.Generator()
    for call in (
        dropfast.torch.Dropout(generator=generator),
        lambda x: dropfast.torch.dropout(x, generator=generator),
    ):
        with pytest.raises(Exception, match="generator cannot be given in code that is compiled"):
            torch.compile(call, fullgraph=True, backend="eager")(torch.ones(3))


def test_bad_tensors_are_refused() -> None:
    compiled = torch.compile(dropfast.torch.Dropout(), backend="eager")
    with pytest.raises(TypeError, match=r"^input must have dtype .*, got torch\.int64$"):
        compiled(torch.ones(3, dtype=torch.int64))


# ---- the backward pass ---------------------------------------------------------------------------


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        *(nn.Linear(16, 32), nn.ReLU(), dropfast.torch.Dropout(0.5)),
        *(nn.Linear(32, 8), dropfast.torch.Dropout(0.25, shared_axes=0), nn.Tanh(), nn.Linear(8, 4)),
    )


def gradients(call: Call, model: nn.Module) -> list[torch.Tensor]:
    """The outputs and gradients of some steps; x needs one too."""
    found = []
    for step in range(3):
        x = torch.randn(12, 16, generator=torch.Generator().manual_seed(step)).requires_grad_()
        model.zero_grad()
        torch.manual_seed(step)
        y = call(x)
        after = torch.get_rng_state()
        torch.rand(1)
        y.square().sum().backward()
        assert x.grad is not None
        found += [y.detach(), x.grad, after.float()]
        found += [p.grad.clone() for p in model.parameters() if p.grad is not None]
    return found


def assert_close(got: list[torch.Tensor], want: list[torch.Tensor]) -> None:
    """Compilers may sum in another order; another mask would be far off."""
    assert len(got) == len(want)
    for a, b in zip(got, want, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("budget", [1.0, 0.9, 0.5, 0.1, 0.01])
@pytest.mark.parametrize("backend_of_torch", ["aot_eager_decomp_partition", "inductor"])
def test_memory_budgets_do_not_change_gradients(backend_of_torch: str, budget: float) -> None:
    model, same = network(), network()
    with torch._functorch.config.patch(activation_memory_budget=budget):
        got = gradients(torch.compile(model, fullgraph=True, backend=backend_of_torch), model)
    assert_close(got, gradients(same, same))


@pytest.mark.parametrize("budget", [1.0, 0.9, 0.5, 0.1])
def test_memory_budgets_do_not_mix_masks(budget: float) -> None:
    """Where PyTorch's own gives half of the gradient another mask."""
    x, w = torch.randn(64, 64, requires_grad=True), torch.randn(64, 64, requires_grad=True)

    def function(x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
        return dropfast.torch.dropout(x.sin() * w)

    with torch._functorch.config.patch(activation_memory_budget=budget):
        y = torch.compile(function, fullgraph=True, backend="inductor")(x, w)
        dx, dw = torch.autograd.grad(y.sum(), (x, w))
    scale = 2.0 * (y != 0)
    torch.testing.assert_close(dw, scale * x.sin())
    torch.testing.assert_close(dx, scale * w * x.cos())


@pytest.mark.parametrize("backend_of_torch", ["aot_eager", "inductor"])
def test_no_memory_at_all_is_refused(backend_of_torch: str) -> None:
    model = network()
    with torch._functorch.config.patch(activation_memory_budget=0.0):
        with pytest.raises(Exception, match=r"cannot be compiled with torch\._functorch\.config\.activation_memory"):
            torch.compile(model, backend=backend_of_torch)(torch.ones(12, 16))
        assert model(torch.ones(12, 16)).shape == (12, 4)  # eager mode has nothing to do with it


INSIDE: dict[str, Callable[[nn.Sequential, torch.Tensor], torch.Tensor]] = {
    "one": lambda model, x: checkpoint(model, x, use_reentrant=False),
    "two": lambda model, x: checkpoint(model[3:], checkpoint(model[:3], x, use_reentrant=False), use_reentrant=False),
    "no-rng": lambda model, x: checkpoint(model, x, use_reentrant=False, preserve_rng_state=False),
}


# Not "eager": a graph that runs there repeats no random numbers, PyTorch's own neither.
@pytest.mark.parametrize("backend_of_torch", ["aot_eager", "inductor"])
@pytest.mark.parametrize("how", INSIDE)
def test_checkpoints_inside_of_compiled_code(how: str, backend_of_torch: str) -> None:
    model, same = network(), network()
    compiled = torch.compile(lambda x: INSIDE[how](model, x), fullgraph=True, backend=backend_of_torch)
    assert_close(gradients(compiled, model), gradients(same, same))


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("backend_of_torch", BACKENDS)
def test_checkpoints_around_compiled_code(backend_of_torch: str, reentrant: bool) -> None:
    model, same = network(), network()
    compiled = torch.compile(model, fullgraph=True, backend=backend_of_torch)
    got = gradients(lambda x: checkpoint(compiled, x, use_reentrant=reentrant), model)
    assert_close(got, gradients(same, same))


# ---- transforms inside ---------------------------------------------------------------------------


@pytest.mark.parametrize("backend_of_torch", BACKENDS)
def test_transforms_inside_of_compiled_code(backend_of_torch: str) -> None:
    def dropout(x: torch.Tensor) -> torch.Tensor:
        return dropfast.torch.dropout(x)

    x = torch.ones(20, 30)

    def compiled(function: Any) -> Any:
        return torch.compile(function, fullgraph=True, backend=backend_of_torch)

    y, tangent = compiled(lambda x: func.jvp(dropout, (x,), (3 * x,)))(x)
    assert torch.equal(tangent, 3 * y)
    grad = compiled(func.grad(lambda x: dropout(x).sum()))(x)
    assert set(grad.unique().tolist()) == {0.0, 2.0}
    different = compiled(torch.vmap(dropout, randomness="different"))(x)
    assert len({tuple(row.tolist()) for row in different}) == 20
    same = compiled(torch.vmap(dropout, randomness="same"))(x)
    assert torch.equal(same, same[:1].expand_as(same))
    assert same[0].unique().numel() == 2


@pytest.mark.parametrize("backend_of_torch", BACKENDS)
def test_tangents_of_dual_tensors_are_kept(backend_of_torch: str) -> None:
    compiled = torch.compile(dropfast.torch.Dropout(), backend=backend_of_torch)
    x, t = torch.randn(20, 30), torch.randn(20, 30)
    compiled(x)
    with forward_ad.dual_level():
        y, tangent = forward_ad.unpack_dual(compiled(forward_ad.make_dual(x, t)))
        assert torch.equal(tangent, 2 * t * (y != 0))
