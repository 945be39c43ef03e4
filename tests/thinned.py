"""Networks with shared masks, thinned and as they were, on small integers: nothing is rounded, so bits are equal."""

import copy

import pytest
import torch
from torch import nn

import dropfast.torch
from dropfast.torch import _thin_run

EXACT_RATES = (0.0, 0.5, 0.75, 0.875, 1.0)  # whose scales are powers of two


@pytest.fixture
def always(monkeypatch: pytest.MonkeyPatch) -> None:
    """All is left out that can be, whether it is worth it or not."""
    for name in ("_COPY", "_LEAST", "_LEAST_OF_CONVOLUTIONS", "_FEWEST_ROWS"):
        monkeypatch.setattr(_thin_run, name, 0)


def integers(model: nn.Module, seed: int, highest: int = 2) -> nn.Module:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randint(-highest, highest + 1, parameter.shape, generator=generator))
    return model


def thinned(model: nn.Module) -> nn.Module:
    model = copy.deepcopy(model)
    dropfast.torch.thin(model)
    return model


def is_thinned(y: torch.Tensor) -> bool:
    """Whether a product that leaves out something is among what a result comes from."""
    seen, todo = set(), [y.grad_fn]
    while todo:
        node = todo.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if node.name() in ("_LinearBackward", "_TakeBackward", "_PutBackward"):
            return True
        todo += [of for of, _ in node.next_functions]
    return False


def pass_of(model: nn.Module, x: torch.Tensor, seed: int = 0) -> list[torch.Tensor]:
    """The output, the generator's next number, and all gradients."""
    x = x.clone().requires_grad_()
    model.zero_grad()
    torch.manual_seed(seed)
    y = model(x)
    after = torch.rand(1)
    y.backward(torch.randint(-1, 2, y.shape, generator=torch.Generator().manual_seed(1)).to(y.dtype))
    assert x.grad is not None
    return [y.detach(), after, x.grad, *(p.grad for p in model.parameters() if p.grad is not None)]


def assert_equal(dense: nn.Module, thin: nn.Module, x: torch.Tensor, seed: int = 0) -> None:
    for a, b in zip(pass_of(dense, x, seed), pass_of(thin, x, seed), strict=True):
        assert a.shape == b.shape
        assert torch.equal(a, b)
