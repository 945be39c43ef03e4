"""Devices without kernels: the portable text, eager and compiled, on the CPU by force; and where what runs.

No machine here has such a device: that the bits are right on it follows from its integers being right.
"""

import re
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from cases import DTYPES, MODES, RATES, values
from expected import assert_same_bits
from tensors import CALLS, IGNORE_THEIR_WARNINGS, NAMED, Seen, array, both_ways, next_mask, tensor
from torch import library, nn
from torch._dynamo.backends.common import aot_autograd
from torch._functorch.aot_autograd import make_boxed_func
from torch._subclasses import FakeTensorMode

import dropfast.torch
from dropfast import Mask
from dropfast.torch import _devices
from dropfast.torch._operators import KEYS, operators, state_of

pytestmark = IGNORE_THEIR_WARNINGS

PAGE = Path(__file__).parents[3] / "docs" / "torch.md"
KEY, DRAW = 2**64 - 5, 2**32 - 3


def portable(mask: Mask, x: torch.Tensor) -> torch.Tensor:
    _, strides, start, key, draw, threshold = mask._recipe
    return _devices.apply(x, state_of(key, draw, start), strides, threshold)


@pytest.fixture
def forced(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[torch.Tensor]]:
    """The CPU is one of the other devices; the inputs of the calls that came to it."""
    calls: list[torch.Tensor] = []

    def apply(input: torch.Tensor, *rest: Any) -> torch.Tensor:
        calls.append(input)
        return _devices.apply(input, *rest)

    monkeypatch.setitem(_devices.DEVICES, "cpu", "CPU")
    others = library.Library("dropfast", "IMPL")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # there is a kernel already, which is the point
        others.impl("apply", apply, "CPU")
    torch.compiler.reset()
    yield calls
    others._destroy()
    torch.compiler.reset()


# ---- the bits ------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_dtypes_and_modes(dtype: str, mode: str) -> None:
    for shape in ((9, 5, 70), (2, 3, 4, 5)):
        mask = Mask(shape, 0.3, key=KEY, draw=DRAW, **MODES[mode](shape))
        x = values(shape, DTYPES[dtype])
        assert_same_bits(array(portable(mask, tensor(x))), mask.apply(x))


@pytest.mark.parametrize("rate", RATES)
def test_rates(rate: str) -> None:
    for dtype in DTYPES.values():
        mask, x = Mask((9, 300), RATES[rate], key=KEY), values((9, 300), dtype)
        assert_same_bits(array(portable(mask, tensor(x))), mask.apply(x))


@pytest.mark.parametrize("shape", [(), (0,), (1,), (4, 0, 3), (129,)], ids=str)
def test_small_shapes(shape: tuple[int, ...]) -> None:
    mask, x = Mask(shape, 0.5, key=KEY), values(shape, DTYPES["float32"])
    assert_same_bits(array(portable(mask, tensor(x))), mask.apply(x))


def test_windows() -> None:
    """Beyond 2**32 elements, and where the number of a block has a high word."""
    for whole, start, shape in (
        ((2**33, 300), (2**32 + 1, 37), (7, 263)),
        ((2**40,), (2**39 - 100,), (300,)),
        ((2**62, 2), (2**62 - 5, 0), (5, 2)),
    ):
        mask = Mask(whole, 0.3, key=KEY, draw=DRAW).window(start, shape)
        x = values(shape, DTYPES["float32"])
        assert_same_bits(array(portable(mask, tensor(x))), mask.apply(x))


def test_many_masks() -> None:
    """As torch.vmap asks for, with randomness="different"."""
    states = torch.randint(*KEYS, (3, 2, 3))
    states[..., 1:] &= 0xFFFF
    x = torch.randn(3, 2, 5, 40)
    args = x, states, (40, 1), 1 << 30
    assert torch.equal(_devices.apply(*args), operators.apply(*args))


# ---- by force, from the call on ------------------------------------------------------------------


@pytest.mark.parametrize("call", CALLS)
def test_eager(call: str, forced: list[torch.Tensor]) -> None:
    x = torch.randn(6, 5, 40)
    want = both_ways(CALLS[call], x)
    assert not forced
    with Seen():
        got = both_ways(CALLS[call], x)
    assert all(torch.equal(a, b) for a, b in zip(got, want, strict=True))
    assert len(forced) == 4


@pytest.mark.parametrize("call", CALLS)
def test_compiled(call: str, forced: Any) -> None:
    """Of one shape and then of any; the compiler sees what it can fuse: no call of ours but for the key."""
    seen: list[str] = []

    def look(graph: Any, example: Any) -> Any:
        seen.extend(str(node.target) for node in graph.graph.nodes if node.op == "call_function")
        return make_boxed_func(graph)

    backend = aot_autograd(fw_compiler=look, bw_compiler=look)
    made = torch.compile(CALLS[call], backend=backend, fullgraph=True)
    for shape in ((6, 5, 40), (3, 4, 50)) if call != "apply" else (NAMED.shape,):
        x = torch.randn(shape)
        want = both_ways(CALLS[call], x)
        assert all(torch.equal(a, b) for a, b in zip(both_ways(made, x), want, strict=True))
    assert "dropfast.apply.default" not in seen
    assert ("dropfast.new_state.default" in seen) == (call != "apply")
    assert "aten.bitwise_xor.Tensor" in seen


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64], ids=str)
def test_compiled_by_inductor(dtype: torch.dtype, forced: Any) -> None:
    x = torch.randn(50, 40).to(dtype)
    made = torch.compile(lambda x: dropfast.torch.dropout(x, 0.5), fullgraph=True)
    want = both_ways(dropfast.torch.dropout, x)
    assert all(torch.equal(a, b) for a, b in zip(both_ways(made, x), want, strict=True))


def test_checkpoints_in_compiled_code(forced: None) -> None:
    from torch.utils.checkpoint import checkpoint

    def call(x: torch.Tensor) -> torch.Tensor:
        return checkpoint(lambda x: dropfast.torch.dropout(x.sin(), 0.5), x, use_reentrant=False)

    x = torch.randn(50, 40)
    made = torch.compile(call, backend="aot_eager", fullgraph=True)
    assert all(torch.equal(a, b) for a, b in zip(both_ways(made, x), both_ways(call, x), strict=True))


# ---- where what runs: the table of docs/torch.md -------------------------------------------------

MODES_OF_THE_TABLE: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "`dropout`, layers": dropfast.torch.dropout,
    "`apply`": lambda x: dropfast.torch.apply(Mask((4, 5), key=1), x),
    "with `enable`": lambda x: nn.functional.dropout(x),
}


def table() -> dict[tuple[str, str], str]:
    """The cells of the page, by mode and device."""
    text = PAGE.read_text().partition("## Where it runs")[2].partition("\n## ")[0]
    head, _, *rows = [
        [cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if "|" in line
    ]
    return {(row[0], device): cell for row in rows for device, cell in zip(head[1:], row[1:], strict=True)}


def implementation(device: str) -> str:
    """What a call of our operator comes to."""
    if device == "cpu":
        return "kernels"
    assert torch._C._dispatch_has_kernel_for_dispatch_key("dropfast::apply", _devices.DEVICES[device])
    return "Triton" if device == "cuda" else "portable"


def eager(call: Callable[[torch.Tensor], torch.Tensor], device: str) -> str:
    with FakeTensorMode(), Seen() as mode:
        x = torch.empty(4, 5, device=device)
        try:
            y = call(x)
        except ValueError as error:
            assert str(error).startswith(f"input must be on the CPU, CUDA, MPS or XPU, got one on {device}")  # noqa: PT017
            return "refused"
    assert (y.shape, y.dtype, y.device) == (x.shape, x.dtype, x.device)
    return implementation(device) if "dropfast.apply.default" in mode.seen else "PyTorch's own"


@pytest.mark.parametrize("device", ["cpu", "cuda", "mps", "xpu", "meta"])
@pytest.mark.parametrize("mode", MODES_OF_THE_TABLE)
def test_table_in_eager_mode(mode: str, device: str) -> None:
    cell = table()[mode, {"cuda": "CUDA", "cpu": "CPU", "meta": "meta, others"}.get(device, "MPS, XPU")]
    with dropfast.torch.enable() if mode == "with `enable`" else warnings.catch_warnings():
        got = eager(MODES_OF_THE_TABLE[mode], device)
    if mode == "with `enable`" and device == "cpu":  # a fake tensor is no memory; where there is, the kernel is ours
        with dropfast.torch.enable():
            mask = next_mask((50,))
            assert torch.equal(nn.functional.dropout(torch.ones(50)), dropfast.torch.apply(mask, torch.ones(50)))
        got = "kernels"
    assert re.sub(", or .*", "", cell) == got


def test_table_of_compiled_code() -> None:
    """Of what a compiler is told: on the CPU a call, elsewhere what the call is made of, as test_compiled looks at."""
    cells = {device: cell for (mode, device), cell in table().items() if mode == "in `torch.compile`"}
    assert cells == {"CPU": "kernels", "CUDA": "portable", "MPS, XPU": "portable", "meta, others": "PyTorch's own"}


def test_table_of_dtensors() -> None:
    """Each rank's part is a tensor of its device: test_torch_sharded.py."""
    cells = {mode: cell for (mode, device), cell in table().items() if device == "CPU" and "DTensor" in mode}
    assert cells == {"on a DTensor": "kernels"}


# ---- what is refused -----------------------------------------------------------------------------


def test_a_cuda_graph_does_not_capture_a_key(monkeypatch: pytest.MonkeyPatch, forced: Any) -> None:
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    before = torch.get_rng_state()
    with Seen():
        with pytest.raises(RuntimeError, match=r"^dropout cannot be captured in a CUDA graph"):
            dropfast.torch.dropout(torch.ones(3))
        dropfast.torch.apply(Mask(3, key=1), torch.ones(3))
    assert torch.equal(torch.get_rng_state(), before)
