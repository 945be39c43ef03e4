"""PyTorch's own samples of its dropout, with dropfast in its place: derivatives, tracing, and PyTorch's shapes."""

from collections.abc import Callable, Iterator
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from tensors import IGNORE_THEIR_WARNINGS
from torch.fx.experimental.proxy_tensor import make_fx
from torch.nn import functional
from torch.testing._internal.common_methods_invocations import op_db

import dropfast.torch

pytestmark = IGNORE_THEIR_WARNINGS

SAMPLES = [
    pytest.param(sample.input, sample.args, sample.kwargs, id=str(number))
    for op in op_db
    if op.name == "nn.functional.dropout"
    for number, sample in enumerate(op.sample_inputs("cpu", torch.float64, requires_grad=True))
]
assert len(SAMPLES) > 10


@pytest.fixture(params=["enable", "function"])
def dropout(request: pytest.FixtureRequest) -> Iterator[Callable[..., torch.Tensor]]:
    enabled = request.param == "enable"
    with dropfast.torch.enable() if enabled else nullcontext():
        yield functional.dropout if enabled else dropfast.torch.dropout


@pytest.mark.parametrize(("x", "args", "kwargs"), SAMPLES)
def test_pytorchs_own_samples(
    dropout: Callable[..., torch.Tensor], x: torch.Tensor, args: Any, kwargs: dict[str, Any]
) -> None:
    def call(x: torch.Tensor) -> torch.Tensor:
        return dropout(x.clone(), *args, **kwargs)

    def seeded(x: torch.Tensor) -> torch.Tensor:
        torch.manual_seed(0)
        return call(x)

    y = seeded(x)
    with torch.no_grad():
        assert y.shape == x.shape
        assert ((y == 0) | (y / x > 0.999)).all()
    assert torch.autograd.gradcheck(seeded, x, check_forward_ad=True, check_batched_grad=True)
    assert torch.autograd.gradgradcheck(seeded, x)
    for mode in ("real", "symbolic"):
        graph: Any = make_fx(call, tracing_mode=mode)(x)
        torch.manual_seed(0)
        torch.testing.assert_close(graph(x), y)
    torch.testing.assert_close(torch.func.jvp(seeded, (x.detach(),), (x.detach(),))[1], y)
