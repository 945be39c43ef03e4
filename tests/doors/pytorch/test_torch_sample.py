"""Monte Carlo dropout: each sample is one network, for all of a batch and all batches of a pool."""

import copy
import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from tensors import IGNORE_THEIR_WARNINGS
from thinned import always, integers, is_thinned, thinned
from torch import nn

import dropfast.torch
from dropfast import Mask
from dropfast.torch import sample

__all__ = ["always"]

pytestmark = IGNORE_THEIR_WARNINGS


def mlp(drop: Callable[..., nn.Module] = nn.Dropout) -> nn.Sequential:
    layers = (nn.Linear(8, 20), nn.ReLU(), drop(0.5), nn.Sequential(nn.Linear(20, 30), nn.ReLU(), drop(0.75)))
    return integers(nn.Sequential(*layers, nn.Linear(30, 4)).double().eval(), 0)  # type: ignore[return-value]


def cnn() -> nn.Sequential:
    layers = (nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Dropout2d(0.5), nn.MaxPool2d(2), nn.Dropout(0.5), nn.Flatten())
    return integers(nn.Sequential(*layers, nn.Linear(72, 4)).double().eval(), 0)  # type: ignore[return-value]


X = torch.randint(-2, 3, (30, 8), generator=torch.Generator().manual_seed(0)).double()
IMAGES = torch.randint(-2, 3, (5, 3, 8, 8), generator=torch.Generator().manual_seed(0)).double()


def by_hand(model: nn.Sequential, x: torch.Tensor, draw: int, key: int) -> torch.Tensor:
    """One network: the units of all layers are the elements of one mask, in their order."""
    first = 0
    for module in (leaf for leaf in model.modules() if not isinstance(leaf, nn.Sequential)):
        if not isinstance(module, (nn.Dropout, nn.Dropout2d)):
            x = module(x)
            continue
        inside = (2, 3) if isinstance(module, nn.Dropout2d) else ()
        noise_shape = [1 if axis in (0, *inside) else n for axis, n in enumerate(x.shape)]
        size = int(np.prod(noise_shape))
        mask = Mask(first + size, module.p, key=key, draw=draw).window(first, size)
        x = x * torch.from_numpy(mask.keep().reshape(noise_shape) * mask.scale)
        first += size
    return x


@pytest.mark.parametrize(("make", "x"), [(mlp, X), (cnn, IMAGES)], ids=["mlp", "cnn"])
@pytest.mark.parametrize("thin", [False, True])
def test_samples_are_networks(always: None, make: Callable[[], nn.Sequential], x: torch.Tensor, thin: bool) -> None:
    model = make()
    if thin:
        dropfast.torch.thin(model)
    y = sample(model, x, 5, key=7)
    assert y.shape == (5, len(x), 4)
    assert is_thinned(y) or make is cnn
    for draw in range(5):
        assert torch.equal(y[draw], by_hand(model, x, draw, 7))
    assert len({tuple(row) for row in y[:, 0].tolist()}) == 5


def test_a_pool_in_batches_has_the_same_networks(always: None) -> None:
    for drop in (nn.Dropout, dropfast.torch.Dropout, lambda p: dropfast.torch.Dropout(p, shared_axes=0)):
        model = mlp(drop)
        whole = sample(model, X, 6, key=3)
        for rows in (slice(0, 1), slice(1, 13), slice(13, 30)):
            assert torch.equal(sample(model, X[rows], 6, key=3), whole[:, rows])
        assert torch.equal(sample(model, X, 2, key=3), whole[:2])


def test_what_is_dense_has_the_same_networks() -> None:
    """Small batches are, and so is autocast: only the order of sums may differ."""
    model = nn.Sequential(
        nn.Linear(8, 512), nn.ReLU(), nn.Dropout(), nn.Linear(512, 512), nn.Dropout(), nn.Linear(512, 4)
    )
    pool = torch.randn(300, 8)
    whole = sample(model, pool, 3, key=5)
    assert is_thinned(whole)
    few = sample(model, pool[:2], 3, key=5)
    assert not is_thinned(few)
    torch.testing.assert_close(few, whole[:, :2], rtol=1e-4, atol=1e-4)


class Counted(nn.Linear):
    calls = 0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        Counted.calls += 1
        return super().forward(x)


def test_layers_before_the_first_dropout_are_computed_once(always: None) -> None:
    Counted.calls = 0
    layers = (Counted(8, 8), nn.Dropout(0), Counted(8, 8), nn.Dropout(), Counted(8, 8), nn.Dropout(), nn.Linear(8, 3))
    sample(nn.Sequential(*layers), torch.randn(4, 8), 10)
    assert Counted.calls == 2 + 10


def test_keys_are_pytorchs() -> None:
    model = mlp()
    torch.manual_seed(1)
    first, second = sample(model, X, 3), sample(model, X, 3)
    torch.manual_seed(1)
    assert torch.equal(sample(model, X, 3), first)
    assert not torch.equal(first, second)
    before = torch.get_rng_state()
    sample(model, X, 3, key=2**64 - 1)
    assert torch.equal(torch.get_rng_state(), before)


def test_modes_stay_and_norms_obey_theirs() -> None:
    model = nn.Sequential(nn.Linear(8, 8), nn.BatchNorm1d(8), nn.Dropout(), nn.Linear(8, 3)).eval()
    before = copy.deepcopy(model.state_dict())
    assert sample(model, X.float(), 4).std(0).max() > 0
    assert not any(module.training for module in model.modules())
    assert all(torch.equal(a, b) for a, b in zip(before.values(), model.state_dict().values(), strict=True))


def test_gradients(always: None) -> None:
    x = X.clone().requires_grad_()
    model = mlp()
    sample(model, x, 3, key=7).sum().backward()
    found = [x.grad, *(p.grad for p in model.parameters())]
    x, model = X.clone().requires_grad_(), mlp()
    torch.stack([by_hand(model, x, draw, 7) for draw in range(3)]).sum().backward()
    for a, b in zip(found, [x.grad, *(p.grad for p in model.parameters())], strict=True):
        assert a is not None
        assert b is not None
        assert torch.equal(a, b)


def test_rates() -> None:
    model = nn.Sequential(nn.Linear(8, 4), nn.Dropout(0), nn.Linear(4, 3)).double()
    assert torch.equal(sample(model, X, 2), torch.stack([model(X)] * 2))
    model[1].p = 1.0
    assert torch.equal(sample(model, X, 1)[0], model[2].bias.expand(30, 3))


def test_inputs_are_not_written_into(always: None) -> None:
    model = nn.Sequential(nn.Dropout(inplace=True), nn.ReLU(inplace=True), nn.Linear(8, 3)).double()
    x = X.clone()
    with torch.no_grad():
        sample(model, x, 3)
    assert torch.equal(x, X)


def test_compiled() -> None:
    model = mlp()
    torch._dynamo.reset()
    compiled = torch.compile(lambda x: sample(model, x, 3, key=7), backend="aot_eager")
    assert torch.equal(compiled(X), sample(model, X, 3, key=7))


DROPPING = nn.Sequential(nn.Linear(8, 3), nn.Dropout())
HOOKED = copy.deepcopy(DROPPING)
HOOKED[1].register_forward_hook(lambda *_: None)
FAULTS: dict[str, tuple[Callable[[], Any], type[Exception], str]] = {
    "model": (lambda: sample(nn.Linear(8, 3), X, 3), TypeError, "model must be a torch.nn.Sequential, got Linear"),
    "no-dropout": (lambda: sample(nn.Sequential(nn.Linear(8, 3)), X, 3), ValueError, "model must have a dropout layer"),
    "hidden": (
        lambda: sample(nn.Sequential(nn.TransformerEncoderLayer(8, 2), nn.Dropout()), X, 3),
        ValueError,
        "model must have its dropout in Sequentials, got 0 (TransformerEncoderLayer, ",
    ),
    "alpha": (
        lambda: sample(nn.Sequential(nn.AlphaDropout(), nn.Dropout()), X, 3),
        ValueError,
        "got 0 (AlphaDropout, p=0.5)",
    ),
    "hooks": (lambda: sample(HOOKED, X, 3), ValueError, "model must have no hooks on dropout, and none itself, got 1"),
    "samples": (lambda: sample(DROPPING, X.float(), 0), ValueError, "samples must be at least 1, got 0"),
    "boolean": (lambda: sample(DROPPING, X.float(), True), TypeError, "samples must be an integer, got bool"),
    "key": (lambda: sample(DROPPING, X.float(), 3, key=-1), ValueError, "key must be in [0, 2**64), got -1"),
    "x": (lambda: sample(DROPPING, [1.0], 3), TypeError, "x must be a torch.Tensor, got list"),
    "axes": (lambda: sample(DROPPING, X[0].float(), 3), ValueError, "x must have at least two axes"),
    "device": (
        lambda: sample(thinned(DROPPING).to("meta"), X.to("meta").float(), 3),
        ValueError,
        "on the CPU, CUDA, MPS",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_faults(fault: str) -> None:
    call, error, words = FAULTS[fault]
    with pytest.raises(error, match=re.escape(words)):
        call()
