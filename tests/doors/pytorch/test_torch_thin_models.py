"""Models whose Sequentials leave out what shared masks drop: which, which not and why, and nothing else changes."""

import copy
import io
import logging
import pickle
import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
from tensors import IGNORE_THEIR_WARNINGS
from thinned import always, assert_equal, integers, is_thinned, pass_of, thinned
from torch import fx, nn
from torch.autograd import forward_ad
from torch.fx.experimental.proxy_tensor import make_fx
from torch.nn.utils import parametrizations
from torch.utils.checkpoint import checkpoint

import dropfast.torch
from dropfast.torch import Dropout, Dropout2d, ThinSequential, thin

__all__ = ["always"]

pytestmark = IGNORE_THEIR_WARNINGS


def shared(p: float = 0.5, **how: Any) -> Dropout:
    return Dropout(p, shared_axes=0, **how)


def mlp() -> nn.Sequential:
    drop = shared()
    layers = (nn.Linear(8, 20), nn.ReLU(), drop, nn.Linear(20, 20), nn.ReLU(), drop, nn.Linear(20, 4))
    return integers(nn.Sequential(*layers).double(), 0)  # type: ignore[return-value]


def cnn() -> nn.Sequential:
    features = (nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), Dropout2d(0.5, shared_axes=0), nn.MaxPool2d(2))
    head = (nn.Flatten(), nn.Linear(8 * 16, 10), nn.ReLU(), shared(), nn.Linear(10, 4))
    return integers(nn.Sequential(nn.Sequential(*features), nn.Sequential(*head)).double(), 0)  # type: ignore[return-value]


class Block(nn.Module):
    """A residual: the Sequential in it has all units at its ends."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(8, 20), nn.GELU(), shared(), nn.Linear(20, 8), shared())
        self.alone = shared()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.alone(x + self.body(x))  # type: ignore[no-any-return]


X = torch.randint(-2, 3, (6, 8), generator=torch.Generator().manual_seed(0)).double()
IMAGES = torch.randint(-2, 3, (2, 3, 8, 8), generator=torch.Generator().manual_seed(0)).double()


# ---- which ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "x", "names"),
    [
        (mlp, X, ["2", "5"]),
        (cnn, IMAGES, ["0.2", "1.3"]),
        (lambda: nn.Sequential(Block(), nn.Linear(8, 3)), X, ["0.body.2", "0.body.4"]),
        (lambda: nn.Sequential(shared(), nn.Identity(), nn.Linear(8, 3)), X, ["0"]),
        (lambda: nn.Sequential(nn.Linear(8, 20), nn.BatchNorm1d(20), shared(), nn.Linear(20, 3)), X, ["2"]),
        (lambda: nn.Sequential(nn.Linear(8, 20), shared(inplace=True), nn.Softmax(1), nn.Linear(20, 3)), X, ["1"]),
        (lambda: nn.Sequential(nn.Linear(8, 20), nn.Sigmoid(), shared(), nn.PReLU(), nn.Linear(20, 3)), X, ["2"]),
        (lambda: nn.Sequential(shared(0), nn.Linear(8, 20), nn.Dropout(0), shared(), nn.Linear(20, 3)), X, ["3"]),
        (lambda: nn.Sequential(nn.Conv2d(3, 4, 3), nn.AvgPool2d(2), Dropout2d(shared_axes=0)), IMAGES, ["2"]),
        (lambda: nn.Sequential(Dropout2d(shared_axes=0), nn.Flatten(), nn.Linear(192, 3)), IMAGES, ["0"]),
        (lambda: nn.Sequential(shared(), nn.Flatten(), nn.Linear(8, 3)), X, ["0"]),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, list) else None,
)
def test_what_is_left_out(always: None, make: Callable[[], nn.Module], x: torch.Tensor, names: list[str]) -> None:
    dense = make().double()
    thin_model = copy.deepcopy(dense)
    assert thin(thin_model) == names
    assert thin(thin_model) == []
    assert is_thinned(thin_model(x))
    for a, b in zip(pass_of(dense, x), pass_of(thin_model, x), strict=True):
        torch.testing.assert_close(b, a, rtol=1e-12, atol=1e-12)


def hooked(module: nn.Module) -> nn.Module:
    module.register_forward_hook(lambda *_: None)
    return module


LEFT: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "per-sample": (lambda: nn.Sequential(nn.Linear(8, 8), Dropout()), "1 (Dropout: no mask for the whole batch)"),
    "pytorchs": (lambda: nn.Sequential(nn.Linear(8, 8), nn.Dropout()), "1 (Dropout: PyTorch's own, a mask for each"),
    "no-sequential": (lambda: nn.ModuleDict({"drop": shared()}), "drop (Dropout: it stands in no torch.nn.Sequential)"),
    "the-model": (shared, "the model (Dropout: it stands in no torch.nn.Sequential)"),
    "alone": (lambda: nn.Sequential(shared()), "0 (Dropout: no Linear or Conv2d next to it)"),
    "norms": (
        lambda: nn.Sequential(nn.BatchNorm1d(8), shared(), nn.LayerNorm(8)),
        "1 (Dropout: no Linear or Conv2d next to it and BatchNorm1d before it and LayerNorm behind it)",
    ),
    "one-side": (
        lambda: nn.Sequential(nn.Linear(8, 8), nn.BatchNorm1d(8), shared(), nn.Linear(8, 8)),
        "2 (Dropout: on one side: BatchNorm1d before it)",
    ),
    "sigmoid": (
        lambda: nn.Sequential(nn.Linear(8, 8), shared(), nn.Sigmoid(), nn.Linear(8, 8)),
        "1 (Dropout: on one side: Sigmoid behind it)",
    ),
    "groups": (
        lambda: nn.Sequential(Dropout2d(shared_axes=0), nn.Conv2d(8, 8, 3, groups=8)),
        "0 (Dropout2d: no Linear or Conv2d next to it and Conv2d behind it)",
    ),
    "in-place": (lambda: nn.Sequential(shared(inplace=True), nn.Linear(8, 8)), "0 (Dropout: in place)"),
    "hooks": (lambda: nn.Sequential(hooked(shared()), nn.Linear(8, 8)), "0 (Dropout: it has hooks)"),
    "lstm": (lambda: nn.LSTM(3, 3, num_layers=2, dropout=0.5), "the model (LSTM: dropout=0.5)"),
}


@pytest.mark.parametrize("case", LEFT)
def test_what_stays_is_named_with_the_reason(case: str, caplog: pytest.LogCaptureFixture) -> None:
    make, words = LEFT[case]
    with caplog.at_level(logging.WARNING, "dropfast.torch"):
        thin(make())
    (record,) = caplog.records
    assert record.getMessage().startswith(f"thin leaves as it is: {words}")


NOT_SOUND: dict[str, tuple[Callable[[], nn.Module], torch.Tensor]] = {
    "sigmoid": (lambda: nn.Sequential(shared(), nn.Sigmoid(), nn.Linear(8, 3)), X),
    "hardtanh": (lambda: nn.Sequential(shared(), nn.Hardtanh(1, 2), nn.Linear(8, 3)), X),
    "axes": (lambda: nn.Sequential(nn.Linear(8, 3), shared()), X.view(3, 2, 8)),
    "elements": (lambda: nn.Sequential(nn.Conv2d(3, 4, 3), shared()), IMAGES),
    "rows": (lambda: nn.Sequential(nn.Linear(8, 3), Dropout(shared_axes=1)), X),
    "flatten": (lambda: nn.Sequential(shared(), nn.Flatten(), nn.Linear(16, 3)), X.view(3, 2, 8)),
    "pool": (lambda: nn.Sequential(nn.Linear(8, 6), shared(), nn.MaxPool2d(2), nn.Linear(3, 3)), X.view(3, 2, 8)),
    "width": (lambda: nn.Sequential(nn.Conv2d(3, 4, 3), Dropout2d(shared_axes=0), nn.Linear(6, 2)), IMAGES),
    "indices": (lambda: nn.Sequential(Dropout2d(shared_axes=0), nn.MaxPool2d(2, return_indices=True), First()), IMAGES),
    "one-image": (lambda: nn.Sequential(nn.Conv2d(3, 4, 3), Dropout(shared_axes=(1, 2))), IMAGES[0]),
    "vector": (lambda: nn.Sequential(nn.Linear(8, 3), Dropout(noise_shape=(None,))), X[0]),
}


class First(nn.Conv2d):
    """The first of two, and no Conv2d."""

    def __init__(self) -> None:
        super().__init__(3, 3, 3)

    def forward(self, both: Any) -> torch.Tensor:  # type: ignore[override]
        return super().forward(both[0])


@pytest.mark.parametrize("case", NOT_SOUND)
def test_what_would_not_be_the_same_is_dense(always: None, case: str) -> None:
    make, x = NOT_SOUND[case]
    dense = integers(make().double(), 0)
    if case in ("sigmoid", "hardtanh"):  # of zeros they make something else
        dense = nn.Sequential(dense, shared(), nn.Linear(3, 3, dtype=torch.float64))
    thin_model = thinned(dense)
    for a, b in zip(pass_of(dense, x), pass_of(thin_model, x), strict=True):
        torch.testing.assert_close(b, a, rtol=1e-12, atol=1e-12)


def test_weights_of_another_dtype_have_pytorchs_words(always: None) -> None:
    plain = nn.Sequential(shared(), nn.Linear(8, 3, dtype=torch.float32))
    words = []
    for model in (plain, thinned(plain)):
        with pytest.raises(RuntimeError, match="dtype") as raised:
            model(X.double())
        words.append(str(raised.value))
    assert words[0] == words[1]


def test_noise_shapes_that_do_not_fit_are_refused(always: None) -> None:
    for noise_shape in ((1, 5), (1, None, None)):
        model = thinned(nn.Sequential(nn.Linear(8, 20), Dropout(noise_shape=noise_shape)))
        with pytest.raises(ValueError, match="noise_shape must have one entry an axis"):
            model(X.float())


# ---- the model stays what it is ------------------------------------------------------------------


@pytest.mark.parametrize(("make", "x"), [(mlp, X), (cnn, IMAGES)], ids=["mlp", "cnn"])
def test_thinned_models_are_the_plain_ones(always: None, make: Callable[[], nn.Module], x: torch.Tensor) -> None:
    plain = make()
    model = thinned(plain)
    assert_equal(plain, model, x)
    assert torch.equal(model.eval()(x), plain.eval()(x))
    assert not is_thinned(model(x))
    assert list(model.state_dict()) == list(plain.state_dict())
    model.load_state_dict(plain.state_dict())
    assert [name for name, _ in model.named_modules()] == [name for name, _ in plain.named_modules()]
    saved = io.BytesIO()
    torch.save(model, saved)
    saved.seek(0)
    for again in (copy.deepcopy(model), pickle.loads(pickle.dumps(model)), torch.load(saved, weights_only=False)):
        assert type(again) is ThinSequential
        assert_equal(plain.train(), again.train(), x)


def test_revert_undoes_it() -> None:
    model = mlp()
    assert thin(model) == ["2", "5"]
    assert dropfast.torch.revert(model) == ["", "2", "5"]
    assert type(model) is nn.Sequential


def test_dropout_alone_may_train(always: None) -> None:
    """As for Monte Carlo dropout by hand."""
    plain = mlp().eval()
    plain[2].train()
    assert_equal(plain, thinned(plain), X)


def test_generators_of_layers(always: None) -> None:
    model = thinned(nn.Sequential(nn.Linear(8, 20), shared(generator=torch.Generator().manual_seed(3))).double())
    before = torch.get_rng_state()
    y = model(X)
    assert torch.equal(before, torch.get_rng_state())
    assert not torch.equal(model(X) == 0, y == 0)


def test_optimizers_of_any_kind(always: None) -> None:
    outcomes = []
    for model in (mlp(), thinned(mlp())):
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.25)
        for step in range(3):
            torch.manual_seed(step)
            optimizer.zero_grad()
            model(X).square().mean().backward()
            optimizer.step()
        outcomes.append(torch.cat([p.detach().flatten() for p in model.parameters()]))
    torch.testing.assert_close(outcomes[1], outcomes[0], rtol=1e-9, atol=1e-9)


class Checkpointed(nn.Module):
    def __init__(self, model: nn.Module, reentrant: bool) -> None:
        super().__init__()
        self.model, self.reentrant = model, reentrant

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return checkpoint(self.model, x, use_reentrant=self.reentrant)  # type: ignore[no-any-return]


@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpoints(always: None, reentrant: bool) -> None:
    plain = mlp()
    assert_equal(plain, Checkpointed(thinned(plain), reentrant), X)


def test_threads(always: None) -> None:
    model = thinned(nn.Sequential(nn.Linear(8, 200), shared(), nn.Linear(200, 4)).double())
    found: list[torch.Tensor] = []

    def work() -> None:
        for _ in range(20):
            y = model(X)
            (grad,) = torch.autograd.grad(y.sum(), model[2].weight)
            found.append(grad)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({tuple((grad[0] != 0).tolist()) for grad in found}) == 80


# ---- where it is dense ---------------------------------------------------------------------------


def test_small_products_are_dense() -> None:
    for width, batch, expected in ((2048, 1, False), (2048, 32, True), (64, 128, False), (256, 32, False)):
        model = thinned(nn.Sequential(nn.Linear(width, width), nn.ReLU(), shared(), nn.Linear(width, width)))
        assert is_thinned(model(torch.randn(batch, width))) == expected


HOOKS: dict[str, Callable[[nn.Module], Any]] = {
    "forward": lambda module: module.register_forward_hook(lambda *_: None),
    "pre": lambda module: module.register_forward_pre_hook(lambda *_: None),
    "backward": lambda module: module.register_full_backward_hook(lambda *_: None),
    "method": lambda module: setattr(module, "forward", module.forward),
}


@pytest.mark.parametrize("hook", HOOKS)
def test_hooks_see_all_units(always: None, hook: str) -> None:
    plain = nn.Sequential(nn.Linear(8, 20), nn.Sequential(nn.ReLU(), shared()), nn.Linear(20, 4)).double()
    for name in ("0", "1", "1.0", "1.1"):
        model = thinned(plain)
        HOOKS[hook](model.get_submodule(name))
        seen: list[Any] = []
        model.get_submodule(name).register_forward_hook(lambda _, __, y, seen=seen: seen.append(y.shape))
        model(X)
        assert seen == [(6, 20)]
    model = thinned(plain)
    HOOKS[hook](model)
    assert is_thinned(model(X))  # of its own, all is as it was


def test_parametrized_and_other_classes_are_dense(always: None) -> None:
    plain = mlp()
    model = thinned(plain)
    for which in (plain, model):
        parametrizations.weight_norm(which[3])
    for a, b in zip(pass_of(plain, X), pass_of(model, X), strict=True):
        torch.testing.assert_close(b, a, rtol=1e-12, atol=1e-12)


def test_those_who_look_on_see_the_plain_model(always: None) -> None:
    plain = mlp()
    model = thinned(plain)

    def outcome(call: Callable[[nn.Module], torch.Tensor], model: nn.Module) -> torch.Tensor:
        torch.manual_seed(0)
        return call(model)

    def tangent(model: nn.Module) -> torch.Tensor:
        with forward_ad.dual_level():
            return forward_ad.unpack_dual(model(forward_ad.make_dual(X, torch.ones_like(X)))).tangent

    def autocast(model: nn.Module) -> torch.Tensor:
        with torch.autocast("cpu"):
            return model.float()(X.float())  # type: ignore[no-any-return]

    def export(model: nn.Module) -> torch.Tensor:
        return torch.export.export(model, (X,)).module()(X)  # type: ignore[no-any-return]

    calls: dict[str, Callable[[nn.Module], torch.Tensor]] = {
        "grad": lambda m: torch.func.grad(lambda x: m(x).sum())(X),
        "vmap": lambda m: torch.vmap(m, randomness="same")(X[:, None]),
        "jvp": tangent,
        "compile": lambda m: torch.compile(m, fullgraph=True, backend="aot_eager")(X),
        "export": export,
        "make_fx": lambda m: make_fx(m)(X)(X),
        "jit.trace": lambda m: torch.jit.trace(m, X, check_trace=False)(X),
        "fx": lambda m: fx.symbolic_trace(m)(X),
        "autocast": autocast,
    }
    for name, call in calls.items():
        torch._dynamo.reset()
        assert torch.equal(outcome(call, plain), outcome(call, model)), name


def test_script_has_pytorchs_own_sequential() -> None:
    model = nn.Sequential(nn.Linear(8, 20), nn.ReLU(), shared(), nn.Linear(20, 4))
    thin(model)
    with pytest.raises(TypeError, match="knows no shared_axes"):
        torch.jit.script(model)


def test_batched_and_double_gradients(always: None) -> None:
    plain = mlp()
    model = thinned(plain)
    outcomes = []
    for which in (plain, model):
        x = X.clone().requires_grad_()
        torch.manual_seed(0)
        y = which(x)
        rows = torch.stack([torch.eye(4, dtype=torch.float64)[i].expand(6, 4) for i in range(4)])
        (batched,) = torch.autograd.grad(y, x, rows, is_grads_batched=True, retain_graph=True)
        (grad,) = torch.autograd.grad(y.square().sum(), x, create_graph=True)
        grad.square().sum().backward()
        outcomes.append([batched, grad.detach(), *(p.grad for p in which.parameters() if p.grad is not None)])
    assert all(torch.equal(a, b) for a, b in zip(*outcomes, strict=True))


def test_compiled_autograd(always: None) -> None:
    outcomes = []
    for which in (mlp(), thinned(mlp())):
        torch._dynamo.reset()
        torch.manual_seed(0)
        y = which(X)
        with torch._dynamo.compiled_autograd._enable(torch.compile(backend="eager")):
            y.sum().backward()
        outcomes.append([p.grad for p in which.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*outcomes, strict=True))


def test_devices_without_kernels(always: None) -> None:
    model = thinned(mlp()).to("meta")
    assert model(X.to("meta")).shape == (6, 4)
