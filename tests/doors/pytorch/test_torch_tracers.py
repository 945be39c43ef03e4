"""Tracers and exporters: dropout is in the graph as PyTorch's own would be, and each run has a new mask."""

import io
from collections.abc import Callable

import pytest
import torch
from tensors import IGNORE_THEIR_WARNINGS
from torch import fx, nn
from torch.distributed.pipelining import SplitPoint, pipeline
from torch.fx.experimental.proxy_tensor import make_fx

import dropfast.torch
from dropfast import Mask

pytestmark = IGNORE_THEIR_WARNINGS


class Function(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return dropfast.torch.dropout(x, 0.5, self.training)


class Apply(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return dropfast.torch.apply(Mask((8, 50), key=7), x)


MODULES: dict[str, Callable[[], nn.Module]] = {
    "layer": dropfast.torch.Dropout,
    "layer-inplace": lambda: dropfast.torch.Dropout(inplace=True),
    "shared": lambda: dropfast.torch.Dropout(shared_axes=0),
    "channels": dropfast.torch.Dropout1d,
    "function": Function,
}


class Network(nn.Module):
    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.first, self.drop, self.last = nn.Linear(50, 50), module, nn.Tanh()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.last(self.drop(self.first(x)))
        return y


X = torch.randn(8, 50, generator=torch.Generator().manual_seed(0))


def assert_drops_anew(call: Callable[[torch.Tensor], torch.Tensor], n: int = 8) -> None:
    """Each run has a mask of its own, and the seed repeats it."""
    x = torch.randn(n, 50)
    torch.manual_seed(3)
    first, second = call(x), call(x)
    torch.manual_seed(3)
    assert torch.equal(call(x), first)
    assert not torch.equal(first, second)
    assert 0 < int((first == 0).sum()) < first.numel()


@pytest.mark.parametrize("pre_dispatch", [False, True], ids=["", "pre-dispatch"])
@pytest.mark.parametrize("mode", ["real", "fake", "symbolic"])
@pytest.mark.parametrize("module", MODULES)
def test_make_fx(module: str, mode: str, pre_dispatch: bool) -> None:
    model = Network(MODULES[module]())
    graph = make_fx(model, tracing_mode=mode, pre_dispatch=pre_dispatch, _allow_non_fake_inputs=True)(X)
    assert_drops_anew(graph, 8 if mode != "symbolic" else 12)
    if mode == "real":
        torch.manual_seed(1)
        y = graph(X)
        torch.manual_seed(1)
        assert torch.equal(y, model(X))
    model.eval()
    assert torch.equal(make_fx(model, tracing_mode=mode, _allow_non_fake_inputs=True)(X)(X), model(X))


@pytest.mark.parametrize("mode", ["real", "symbolic"])
def test_make_fx_of_gradients(mode: str) -> None:
    def loss(x: torch.Tensor) -> torch.Tensor:
        return dropfast.torch.dropout(x).sum()

    graph = make_fx(torch.func.grad(loss), tracing_mode=mode)(X)
    assert_drops_anew(graph)
    graph = make_fx(Apply(), tracing_mode=mode, _allow_non_fake_inputs=True)(X)
    assert torch.equal(graph(2 * X), Apply()(2 * X))


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("module", MODULES)
def test_symbolic_trace(module: str, training: bool) -> None:
    model = Network(MODULES[module]()).train(training)
    graph = fx.symbolic_trace(model)
    targets = [(node.op, node.target) for node in graph.graph.nodes]
    if module == "function":
        assert ("call_function", dropfast.torch.dropout) in targets
    else:
        assert ("call_module", "drop") in targets  # a leaf
    if training:
        assert_drops_anew(graph)
    elif module == "function":
        assert torch.equal(graph(X), model(X))  # what `training` was is in the graph, as with PyTorch's function
    else:
        assert torch.equal(graph(X), model(X))
        assert_drops_anew(graph.train())


@pytest.mark.parametrize("strict", [True, False], ids=["strict", "non-strict"])
@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("module", MODULES)
def test_export(module: str, training: bool, strict: bool) -> None:
    model = Network(MODULES[module]()).train(training)
    rows = {"x": {0: torch.export.Dim("rows")}}
    exported = torch.export.export(model, (X,), strict=strict, dynamic_shapes=rows)
    file = io.BytesIO()
    torch.export.save(exported, file)
    file.seek(0)
    exported = torch.export.load(file)
    for program in (exported, exported.run_decompositions()):
        if training:
            assert_drops_anew(program.module(), 12)
            torch.manual_seed(1)
            y = program.module()(X)
            torch.manual_seed(1)
            assert torch.equal(y, model(X))
        else:
            assert torch.equal(program.module()(X), model(X))


@pytest.mark.parametrize("module", MODULES)
def test_jit_trace(module: str) -> None:
    model = Network(MODULES[module]())
    traced = torch.jit.trace(model, X, check_trace=False)
    assert_drops_anew(traced, 12)
    torch.manual_seed(1)
    y = traced(X)
    torch.manual_seed(1)
    assert torch.equal(y, model(X))
    assert torch.equal(torch.jit.trace(model.eval(), X)(X), model(X))


# PyTorch warns that shape and mask are constants of the trace, which they are.
@pytest.mark.filterwarnings("ignore:Converting a tensor to a Python boolean")
@pytest.mark.filterwarnings("ignore:torch.tensor results are registered as constants")
def test_jit_trace_of_a_mask_with_a_name() -> None:
    assert torch.equal(torch.jit.trace(Apply(), X)(2 * X), Apply()(2 * X))


@pytest.mark.parametrize("module", ["layer", "layer-inplace", "channels"])
def test_jit_script(module: str) -> None:
    """Their dropout is PyTorch's own."""
    model = Network(MODULES[module]())
    scripted = torch.jit.script(model)
    assert_drops_anew(scripted)
    assert torch.equal(scripted.eval()(X), model.eval()(X))
    assert torch.equal(torch.jit.script(model)(X), model(X))


def test_jit_script_of_the_function() -> None:
    assert_drops_anew(torch.jit.script(Network(Function())))


def test_jit_script_refuses_what_it_does_not_know() -> None:
    for layer in (dropfast.torch.Dropout(shared_axes=0), dropfast.torch.Dropout(generator=torch.Generator())):
        with pytest.raises(TypeError, match=r"^torch\.jit\.script knows no shared_axes, noise_shape and generator"):
            torch.jit.script(Network(layer))


def test_generators_are_traced_by_make_fx_alone() -> None:
    model = Network(dropfast.torch.Dropout(generator=torch.Generator()))
    traced = make_fx(model)(X)
    assert not torch.equal(traced(X), traced(X))
    traces: dict[str, Callable[[], object]] = {
        "jit": lambda: torch.jit.trace(model, X),
        "strict": lambda: torch.export.export(model, (X,), strict=True),
        "non-strict": lambda: torch.export.export(model, (X,), strict=False),
    }
    for trace in traces.values():
        with pytest.raises(Exception, match="generator cannot be given in code that is compiled, exported or traced"):
            trace()


@pytest.mark.parametrize("module", MODULES)
def test_pipelining(module: str) -> None:
    model = Network(MODULES[module]())
    pipe = pipeline(model, mb_args=(X,), split_spec={"last": SplitPoint.BEGINNING})
    assert pipe.num_stages == 2
    assert_drops_anew(lambda x: pipe.get_stage_module(1)(pipe.get_stage_module(0)(x)))
