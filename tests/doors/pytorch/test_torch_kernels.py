"""PyTorch's own operators with our kernels: the same bits in C++ and in Python, on every backend, in every layout."""

import textwrap
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from cases import DTYPES, Shape, values
from expected import DEFAULT_AND_TWIN, assert_same_bits, using
from functorch.compile import make_boxed_func
from processes import run_python
from tensors import IGNORE_THEIR_WARNINGS, TORCH_DTYPES, array, next_key, next_mask, tensor
from torch import nn
from torch._dynamo.backends.common import aot_autograd
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode

import dropfast
import dropfast.torch
from dropfast.torch import _abi

pytestmark = IGNORE_THEIR_WARNINGS

SMALL, LARGE = (33, 70), (1100, 1000)  # by the number that decides what is saved


@pytest.fixture
def enabled(backend: str) -> Iterator[str]:
    """The name of the backend in use; but for the twin, the kernels are in C++."""
    assert _abi.are_compiled() == _abi.let_errors_pass() == (backend != "numpy")
    with dropfast.torch.enable():
        yield backend


@pytest.fixture(params=DEFAULT_AND_TWIN)
def form(request: pytest.FixtureRequest) -> Iterator[str]:
    """The default backend, with kernels in C++, and the twin."""
    with using(request.param), dropfast.torch.enable():
        yield request.param


VIEWS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "C": lambda x: x,
    "transposed": lambda x: x.transpose(0, -1).contiguous().transpose(0, -1),
    "channels-last": lambda x: x[None].contiguous(memory_format=torch.channels_last)[0],
    "strided": lambda x: x.repeat_interleave(2, -1)[..., ::2],
    "expanded": lambda x: x[:1].expand_as(x),
    "padded": lambda x: functional.pad(x, (0, 3))[..., :-3],
    "negative": lambda x: torch._neg_view(-x),
}


def contiguous(x: torch.Tensor) -> Any:
    return np.array(array(x.resolve_neg()), order="C")


# ---- the mask beside the result ------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("view", VIEWS)
def test_native_dropout(enabled: str, view: str, dtype: str) -> None:
    for shape in ((5, 33, 14), (3, 2, 1), (30, 70, 40)):
        x = VIEWS[view](tensor(values(shape, DTYPES[dtype])))
        mask = next_mask(shape, 0.3)
        y, kept = torch.native_dropout(x, 0.3, True)
        assert_same_bits(array(y), mask.apply(contiguous(x)))
        assert torch.equal(kept, torch.from_numpy(mask.keep()))
        assert y.stride() == kept.stride() == torch.empty_like(x).stride()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("mask_view", VIEWS)
@pytest.mark.parametrize("view", VIEWS)
def test_native_dropout_backward(enabled: str, view: str, mask_view: str, dtype: str) -> None:
    shape = (5, 33, 14)
    grad = VIEWS[view](tensor(values(shape, DTYPES[dtype])))
    mask = dropfast.Mask(shape, 0.3, key=7)
    if mask_view == "negative":  # there are no booleans that are
        mask_view = "C"
    kept = VIEWS[mask_view](torch.from_numpy(mask.keep()))
    if mask_view == "expanded":
        mask = dropfast.Mask(shape, 0.3, key=7, shared_axes=0)
        kept = torch.from_numpy(mask.keep()).expand(shape)
    result = torch.ops.aten.native_dropout_backward(grad, kept, 2.0**32 / (2**32 - round(0.3 * 2**32)))
    assert_same_bits(array(result), mask.apply(contiguous(grad)))


def test_a_mask_of_bytes_that_are_not_1(enabled: str) -> None:
    """As C may make them; PyTorch takes all but 0 for true."""
    kept = torch.tensor([0, 1, 2, 128, 255, 0, 7, 1, 64, 3], dtype=torch.uint8).view(torch.bool)
    result = torch.ops.aten.native_dropout_backward(torch.ones(10), kept, 2.0)
    assert result.tolist() == [0, 2, 2, 2, 2, 0, 2, 2, 2, 2]


@pytest.mark.parametrize("dtype", [torch.int64, torch.complex64, torch.float8_e4m3fn])
def test_other_dtypes_have_pytorchs_results(form: str, dtype: torch.dtype) -> None:
    x, kept = torch.tensor([1, 2, 3]).to(dtype), torch.tensor([True, False, True])

    def result(call: Callable[..., Any], *args: Any) -> Any:
        try:
            return [part.to(torch.complex64).abs().nonzero().tolist() for part in call(*args)]
        except (RuntimeError, NotImplementedError) as error:
            return type(error)

    calls: list[Callable[[], Any]] = [
        lambda: result(torch.native_dropout, x, 1.0, True),
        lambda: result(torch.native_dropout, x, 0.5, False),
        lambda: result(lambda: [torch.ops.aten.native_dropout_backward(x, kept, 2.0)]),
    ]
    ours = [call() for call in calls]
    dropfast.torch.disable()
    assert ours == [call() for call in calls]


# ---- who calls them ------------------------------------------------------------------------------

CALLS: dict[str, Callable[[torch.Tensor, float], torch.Tensor]] = {
    "F.dropout": functional.dropout,
    "F.dropout-in-place": lambda x, p: functional.dropout(x * 1, p, inplace=True),
    "function": dropfast.torch.dropout,
    "function-in-place": lambda x, p: dropfast.torch.dropout(x * 1, p, inplace=True),
    "layer": lambda x, p: dropfast.torch.Dropout(p)(x),
    "module": lambda x, p: nn.Dropout(p)(x),
}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [SMALL, LARGE], ids=["small", "large"])
@pytest.mark.parametrize("call", CALLS)
def test_bits_and_gradients_are_those_of_the_mask(enabled: str, call: str, shape: Shape, dtype: str) -> None:
    x = tensor(values(shape, DTYPES[dtype])).requires_grad_()
    dy = torch.from_numpy(np.random.default_rng(0).standard_normal(shape)).to(TORCH_DTYPES[dtype])
    for p in (0.3, 1.0):
        mask = next_mask(shape, p)
        y = CALLS[call](x, p)
        (dx,) = torch.autograd.grad(y, x, dy)
        assert_same_bits(array(y), mask.apply(array(x)))
        assert_same_bits(array(dx), mask.apply(array(dy)))


@pytest.mark.parametrize("view", VIEWS)
@pytest.mark.parametrize("call", CALLS)
def test_layouts(form: str, call: str, view: str) -> None:
    x = VIEWS[view](torch.randn(5, 33, 14))
    mask = next_mask(x.shape, 0.3)
    assert_same_bits(contiguous(CALLS[call](x, 0.3)), mask.apply(contiguous(x)))


@pytest.mark.parametrize("call", CALLS)
def test_a_call_takes_one_number_of_the_generator(form: str, call: str) -> None:
    for shape in (SMALL, LARGE):
        x = torch.randn(shape, requires_grad=True)
        torch.manual_seed(3)
        CALLS[call](x, 0.5).sum().backward()
        after = next_key()
        torch.manual_seed(3)
        torch.randint(-(2**63), 2**63 - 1, ())
        assert after == next_key()


@pytest.mark.parametrize("call", CALLS)
def test_what_is_saved_for_backward(form: str, call: str) -> None:
    """A byte an element where small tensors have nodes of PyTorch's, and nothing where the mask is computed again."""
    saved: list[torch.Tensor] = []

    def pack(x: torch.Tensor) -> torch.Tensor:
        saved.append(x)
        return x

    for n, bytes_saved in (((1 << 20) - 1, 0 if form == "numpy" else (1 << 20) - 1), (1 << 20, 0)):
        saved.clear()
        x = torch.randn(n, requires_grad=True)
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
            CALLS[call](x, 0.5)
        assert sum(mask.nbytes for mask in saved if mask.ndim) == bytes_saved


@pytest.mark.parametrize("call", CALLS)
def test_gradients_of_gradients(form: str, call: str) -> None:
    def seeded(x: torch.Tensor) -> torch.Tensor:
        torch.manual_seed(0)
        return CALLS[call](x, 0.3)

    x = torch.randn(3, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(seeded, x, check_forward_ad=True, check_batched_grad=True)
    assert torch.autograd.gradgradcheck(seeded, x, check_fwd_over_rev=True, check_rev_over_rev=True)


def test_graphs_of_large_tensors_have_pytorchs_operators(form: str) -> None:
    x = torch.ones(LARGE)
    traced = torch.jit.trace(nn.Dropout(), x, check_trace=False)
    assert "dropfast" not in traced.code
    mask = next_mask(LARGE)
    assert_same_bits(array(traced(x)), mask.apply(array(x)))


# ---- in compiled graphs --------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("view", VIEWS)
def test_apply_in_graph(backend: str, view: str, dtype: str) -> None:
    shape = (5, 33, 14)
    x = VIEWS[view](tensor(values(shape, DTYPES[dtype])))
    for axes in ((), 0, (0, 2)):
        mask = dropfast.Mask(shape, 0.3, key=2**64 - 5, draw=2**32 - 1, shared_axes=axes)
        _, strides, start, _, draw, threshold = mask._recipe
        y = torch.ops.dropfast.apply_in_graph(x, torch.tensor([-5, draw, start]), strides, threshold)
        assert_same_bits(array(y), mask.apply(contiguous(x)))
        assert y.stride() == torch.empty_like(x).stride()


@pytest.mark.parametrize(
    ("shape", "states"),
    [((), ()), ((3, 0), ()), ((2, 3), (2,)), ((1 << 13, (1 << 12) + 1), ())],
    ids=["0-d", "empty", "many-states", "very-large"],
)
def test_apply_in_graph_of_what_is_not_usual(shape: Shape, states: tuple[int, ...]) -> None:
    x = torch.ones(shape, dtype=torch.float16)
    state = torch.arange(3, 6).expand(*states, 3).clone()
    strides = (1,) if states else (shape[1], 1) if shape else ()
    y = torch.ops.dropfast.apply_in_graph(x, state, strides, 1 << 31)
    assert torch.equal(y, torch.ops.dropfast.apply(x, state, strides, 1 << 31))


def test_new_state_is_a_key_of_pytorchs_generator(form: str) -> None:
    for x in torch.ones(3), torch.empty(0):  # on the CPU, and for a tensor on another device
        key = next_key()
        assert torch.ops.dropfast.new_state(x).tolist() == [key - (key >> 63 << 64), 0, 0]


@pytest.mark.parametrize("call", ["layer", "enable"])
def test_graphs_have_the_kernel_alone(form: str, call: str) -> None:
    """Where it is in C++: else they have the operator in Python."""
    graphs = []

    def keep(graph: torch.fx.GraphModule, _: Any) -> Any:
        graphs.append({str(node.target) for node in graph.graph.nodes})
        return make_boxed_func(graph.forward)

    layer = dropfast.torch.Dropout() if call == "layer" else nn.Dropout()
    x = torch.ones(LARGE, requires_grad=True)
    compiled = torch.compile(lambda x: layer(x) * 2, backend=aot_autograd(fw_compiler=keep))
    mask = next_mask(LARGE)
    compiled(x).backward(torch.ones(LARGE))
    torch._dynamo.reset()
    operator = "dropfast.apply.default" if form == "numpy" else "dropfast.apply_in_graph.default"
    assert [{name for name in graph if "dropfast" in name} for graph in graphs] == [
        {"dropfast.new_state.default", operator},
        {operator},
    ]
    assert x.grad is not None
    assert_same_bits(array(x.grad), 2 * mask.apply(np.ones(LARGE, np.float32)))


def test_strides_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match="strides must be one for each axis of input"):
        torch.ops.dropfast.apply_in_graph(torch.ones(3, 4), torch.tensor([1, 2, 0]), (1,), 1 << 31)


# ---- errors --------------------------------------------------------------------------------------


class OfTheirOwnError(Exception):
    """One that PyTorch's functions for C would make a RuntimeError of."""


def fail(*_: Any) -> Any:
    raise OfTheirOwnError


class Failing(TorchDispatchMode):
    """A mode that takes no operator."""

    def __torch_dispatch__(self, *_: Any) -> Any:
        fail()


@pytest.mark.parametrize("shape", [SMALL, LARGE], ids=["small", "large"])
@pytest.mark.parametrize("call", CALLS)
def test_errors_of_modes_and_hooks_pass_through(form: str, call: str, shape: Shape) -> None:
    """PyTorch's checkpoints end by one that a hook raises."""
    x = torch.randn(shape, requires_grad=True) * 1
    with pytest.raises(OfTheirOwnError), Failing():
        CALLS[call](x, 0.5)
    with torch.autograd.graph.saved_tensors_hooks(fail, lambda x: x):
        if form == "numpy" or shape == LARGE:  # nothing is saved
            functional.dropout(x)
        else:
            for function in (functional.dropout, torch.ops.aten.dropout.default, dropfast.torch.dropout):
                with pytest.raises(OfTheirOwnError):
                    function(x, 0.5, True)


def test_errors_of_pytorchs_own_have_its_words(form: str) -> None:
    with pytest.raises(RuntimeError, match=r"^dropout probability has to be between 0 and 1, but got 1\.5$"):
        torch.dropout(torch.ones(3), 1.5, True)
    x = torch.ones(4, requires_grad=True)
    for leaf in (x, x[:2]):
        with pytest.raises(RuntimeError, match=r"^a (view of a )?leaf Variable that requires grad is being used in an"):
            functional.dropout(leaf, inplace=True)
    assert torch.equal(x, torch.ones(4))


def test_ctrl_c_is_an_interrupt(form: str) -> None:
    """Of a large tensor, by a signal that comes while the mask is applied."""
    code = """
        import os, signal, sys, threading, torch, dropfast.torch
        from dropfast import _backend
        signal.signal(signal.SIGINT, signal.default_int_handler)  # what runs in the background is born to ignore it
        _backend.use(sys.argv[1])
        dropfast.torch.enable()
        x = torch.ones(1 << 27 if sys.argv[1] != "numpy" else 1 << 22)
        threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGINT)).start()
        try:
            while True:
                torch.nn.functional.dropout(x, 0.1, inplace=True)
        except KeyboardInterrupt:
            print("interrupted")
    """
    done = run_python(textwrap.dedent(code), form)
    assert (done.stdout, done.returncode) == ("interrupted\n", 0), done.stderr


# ---- where they are not there --------------------------------------------------------------------


def test_what_is_not_there_is_done_in_python() -> None:
    """As with a PyTorch to come that lacks a function or has other errors: the same masks, gradients and numbers."""
    code = """
        import sys, torch, dropfast._native
        if "function" in sys.argv:
            dropfast._native.torch_functions = ("a_function_that_is_not_there",)
        if "errors" in sys.argv:
            dropfast._native.has_known_errors = False
        import dropfast.torch
        from dropfast.torch import _abi
        print(_abi.are_compiled(), _abi.let_errors_pass(), file=sys.stderr)

        def print_all(call):
            x = torch.linspace(-1, 1, 640).view(16, 40).requires_grad_()
            y = call(x)
            y.backward(torch.linspace(1, 2, 640).view(16, 40))
            print(y.detach().view(torch.int32).tolist(), x.grad.view(torch.int32).tolist(), torch.get_rng_state().sum())

        torch.manual_seed(0)
        print_all(dropfast.torch.dropout)
        print_all(dropfast.torch.Dropout(0.3))
        with dropfast.torch.enable():
            print_all(torch.nn.Dropout(0.3))
            print_all(lambda x: torch.nn.functional.dropout(x.sin(), 0.3, inplace=True))
            print_all(lambda x: torch.native_dropout(x, 0.3, True)[0])
            print_all(torch.vmap(torch.nn.functional.dropout, randomness="different"))
    """
    outputs = {}
    for lacks, compiled in (("nothing", "True True"), ("errors", "True False"), ("function", "False False")):
        done = run_python(textwrap.dedent(code), lacks)
        assert (done.stderr, done.returncode) == (f"{compiled}\n", 0)
        outputs[lacks] = done.stdout
    assert outputs["nothing"] == outputs["errors"] == outputs["function"]


def test_pytorch_has_no_kernels_of_its_own_for_what_ours_are_called() -> None:
    code = """
        import torch
        has_kernel = torch._C._dispatch_has_kernel_for_dispatch_key
        print([has_kernel(name, "CPU") for name in ("aten::_fused_dropout", "aten::_masked_scale")])
    """
    done = run_python(textwrap.dedent(code))
    assert (done.stdout, done.returncode) == ("[False, False]\n", 0), done.stderr
