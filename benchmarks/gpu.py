"""Dropout on a GPU beside PyTorch's own: `python benchmarks/gpu.py`, forward alone and with its backward pass.

Medians of calls that take turns, twenty at once, by the GPU's clock, with the memory that a call leaves behind for its
backward pass. `--device cpu` shows that it runs.
"""

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from torch.nn import functional

import dropfast.torch

DTYPES = torch.float32, torch.bfloat16
RATES = 0.5, 0.1
AT_ONCE = 20  # calls, so that the GPU does not wait for Python in between


def ways() -> dict[str, Callable[[torch.Tensor, float], torch.Tensor]]:
    return {
        "F.dropout": functional.dropout,
        "dropfast": dropfast.torch.dropout,
        "F.dropout, compiled": torch.compile(lambda x, p: functional.dropout(x, p)),
        "dropfast, compiled": torch.compile(lambda x, p: dropfast.torch.dropout(x, p)),
    }


def timed(call: Callable[[], object], device: str) -> float:
    """Milliseconds of a call."""
    if device == "cpu":
        began = time.perf_counter()
        call()
        return 1e3 * (time.perf_counter() - began)
    begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    begin.record()
    for _ in range(AT_ONCE):
        call()
    end.record()
    end.synchronize()
    return begin.elapsed_time(end) / AT_ONCE


def saved(call: Callable[[torch.Tensor, float], torch.Tensor], x: torch.Tensor, p: float) -> int:
    """Bytes that are kept for the backward pass."""
    sizes: list[int] = []

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        sizes.append(tensor.nbytes)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        call(x, p)
    return sum(sizes)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--elements", type=int, default=1 << 26)
    parser.add_argument("--rounds", type=int, default=10)
    given = parser.parse_args()
    print(torch.cuda.get_device_name() if given.device == "cuda" else "CPU", "PyTorch", torch.__version__)
    print(f"{'dtype':16}{'p':>5}  {'':22}{'forward, ms':>12}{'and backward':>14}{'saved, MiB':>12}")
    for dtype in DTYPES:
        x = torch.randn(given.elements, device=given.device).to(dtype)
        leaf = x.clone().requires_grad_()
        for p in RATES:
            torch.compiler.reset()  # or it would soon refuse to compile for one more dtype or rate
            calls = ways()
            forward: dict[str, list[float]] = {name: [] for name in calls}
            both: dict[str, list[float]] = {name: [] for name in calls}
            for turn in range(given.rounds + 3):
                for name, call in calls.items():
                    one = timed(lambda call=call, p=p, x=x: call(x, p), given.device)  # type: ignore[misc]
                    two = timed(lambda call=call, p=p, x=x, leaf=leaf: call(leaf, p).backward(x), given.device)  # type: ignore[misc]
                    if turn >= 3:  # what comes before compiles and warms up
                        forward[name].append(one)
                        both[name].append(two)
            for name, call in calls.items():
                kept = saved(call, leaf, p) / 2**20
                times = f"{statistics.median(forward[name]):12.3f}{statistics.median(both[name]):14.3f}"
                print(f"{dtype!s:16}{p:5}  {name:22}{times}{kept:12.3f}", flush=True)


if __name__ == "__main__":
    main()
