"""The promise that a GPU has the masks and the bits of the CPU, in PyTorch: `make gpu`, where there is a GPU."""

from typing import Any

import interpreted
import numpy as np
import pytest
import torch
from cases import DTYPES, MODES, RATES, Array, values
from expected import assert_same_bits
from outcomes import names_of
from tensors import CALLS, NAMED, array, both_ways, tensor

import dropfast.torch
from dropfast import Mask
from dropfast.torch import _devices, _triton
from dropfast.torch._operators import state_of

KEY = 2**64 - 5


def there(x: Array) -> torch.Tensor:
    return tensor(x).cuda()


def back(y: torch.Tensor) -> Any:
    return array(y.cpu())


# ---- the kernel itself: what its interpreter is asked on other machines ---------------------------


@pytest.mark.parametrize("name", sorted(set(names_of(vars(interpreted))) - {"test_the_operator_of_gpus"}))
def test_kernel(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(interpreted, "tensor", there)
    monkeypatch.setattr(interpreted, "array", back)
    with torch.device("cuda"):
        getattr(interpreted, name)()


@pytest.mark.parametrize("rate", RATES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_large(dtype: str, rate: str) -> None:
    mask, x = Mask((1025, 4099), RATES[rate], key=KEY), values((1025, 4099), DTYPES[dtype])
    assert_same_bits(back(_triton.apply(there(x), mask._recipe)), mask.apply(x))


def test_beyond_32_bits() -> None:
    """More elements than 2**31 and 2**32: looked at around these, and at the end."""
    n = 2**32 + 12345
    mask = Mask(n, 0.3, key=KEY)
    x = torch.ones(n, dtype=torch.float16, device="cuda")
    y = _triton.apply(x, mask._recipe)
    for start in (0, 2**31 - 5000, 2**32 - 5000, n - 10000):
        some = np.ones(10000, np.float16)
        assert_same_bits(back(y[start : start + 10000]), mask.window((start,), (10000,)).apply(some))


# ---- the portable text ----------------------------------------------------------------------------


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_portable(dtype: str, mode: str) -> None:
    for shape in ((9, 5, 70), (2, 3, 4, 5)):
        mask = Mask(shape, 0.3, key=KEY, **MODES[mode](shape))
        x = values(shape, DTYPES[dtype])
        _, strides, start, key, draw, threshold = mask._recipe
        y = _devices.apply(there(x), state_of(key, draw, start), strides, threshold)
        assert_same_bits(back(y), mask.apply(x))


# ---- calls, forward and backward ------------------------------------------------------------------


@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "inductor"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("call", CALLS)
def test_call(call: str, dtype: str, compiled: bool) -> None:
    x = tensor(values((6, 5, 40), DTYPES[dtype])).nan_to_num()  # 0 * NaN, which a gradient multiplies, has no one sign
    run = torch.compile(CALLS[call], fullgraph=True) if compiled else CALLS[call]
    assert all(
        torch.equal(there.view(torch.uint8), here.view(torch.uint8))
        for there, here in zip(both_ways(run, x.cuda()), both_ways(CALLS[call], x), strict=True)
    )


def test_layers_train_with_the_masks_of_the_cpu() -> None:
    """Steps of a network in float64: only matrix products differ, in their last bits."""

    def losses(device: str) -> list[float]:
        torch.manual_seed(0)
        net = torch.nn.Sequential(
            torch.nn.Linear(64, 256), torch.nn.ReLU(), dropfast.torch.Dropout(0.5), torch.nn.Linear(256, 1)
        ).double()
        x = torch.randn(128, 64, dtype=torch.float64)
        net, x = net.to(device), x.to(device)
        optimizer = torch.optim.SGD(net.parameters(), 0.01)
        found = []
        for _ in range(10):
            loss = net(x).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            found.append(loss.item())
        return found

    assert losses("cuda") == pytest.approx(losses("cpu"), rel=1e-9)


def test_a_call_does_not_wait_for_the_device() -> None:
    x = torch.randn(1 << 20, device="cuda", requires_grad=True)
    dropfast.torch.dropout(x).backward(x)  # compiles
    torch.cuda.set_sync_debug_mode("error")
    try:
        dropfast.torch.dropout(x).backward(x)
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_a_graph_captures_a_mask_with_a_name_alone() -> None:
    x = torch.randn(6, 5, 40, device="cuda")
    want = dropfast.torch.apply(NAMED, x)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        y = dropfast.torch.apply(NAMED, x)
    y.zero_()
    graph.replay()
    assert torch.equal(y, want)
    with pytest.raises(RuntimeError, match=r"^dropout cannot be captured"), torch.cuda.graph(torch.cuda.CUDAGraph()):
        dropfast.torch.dropout(x)


def test_enable_leaves_a_gpu_to_pytorch() -> None:
    x = torch.ones(1000, device="cuda")
    torch.cuda.manual_seed(1)
    want = torch.nn.functional.dropout(x)
    torch.cuda.manual_seed(1)
    with dropfast.torch.enable():
        assert torch.equal(torch.nn.functional.dropout(x), want)
