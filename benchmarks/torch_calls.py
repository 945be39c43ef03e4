"""What a call of PyTorch's dropout costs, and of ours in its place: modules, functions, and modules with `enable()`.

python benchmarks/torch_calls.py [--compiled]   (in turns, on one thread; the fifth percentile of the processor's time)
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

import dropfast.torch
from dropfast.bench import machine
from dropfast.bench.tables import figure

#: shape: calls in a turn, turns
WORK = {(4, 10): (12, 1500), (32, 32): (12, 1500), (32, 256): (6, 800), (1024, 1024): (1, 100)}
ENABLED = "torch.nn.Dropout, enable()"
MODULE = nn.Dropout(0.5)
CALLS: dict[str, Callable[[Tensor], Tensor]] = {
    "torch.nn.Dropout": nn.Dropout(0.5),
    "dropfast.torch.Dropout": dropfast.torch.Dropout(0.5),
    "F.dropout": lambda x: functional.dropout(x, 0.5),
    "dropfast.torch.dropout": lambda x: dropfast.torch.dropout(x, 0.5),
    ENABLED: lambda x: MODULE(x),  # a function of its own, for compilers keep what they make by functions
    "x * 1.1": lambda x: x * 1.1,
}


def seconds(call: Callable[[Tensor], Tensor], x: Tensor, dy: Tensor, calls: int) -> float:
    """Return the time of one call, and of its backward pass if `x` requires a gradient."""
    start = time.process_time()
    for _ in range(calls):
        x.grad = None
        y = call(x)
        if x.requires_grad:
            y.backward(dy)  # type: ignore[no-untyped-call]
    return (time.process_time() - start) / calls


def measure(shape: tuple[int, ...], backward: bool, compiled: bool) -> dict[str, float]:
    """Return the time of each call."""
    torch.compiler.reset()
    ways = {name: torch.compile(call) if compiled else call for name, call in CALLS.items()}
    x, dy = torch.randn(shape, requires_grad=backward), torch.randn(shape)
    calls, turns = WORK[shape]
    times: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(turns):
        for name, call in ways.items():
            with dropfast.torch.enable() if name == ENABLED else nullcontext():
                seconds(call, x, dy, 1 + calls // 3)  # whose turn it is finds nothing of its own in the caches
                times[name].append(seconds(call, x, dy, calls))
    return {name: sorted(found)[len(found) // 20] for name, found in times.items()}


def row(*cells: Any) -> None:
    print("|", " | ".join(map(str, cells)), "|", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--compiled", action="store_true", help="by torch.compile")
    args = parser.parse_args()
    with machine.limit_threads(1):
        torch.set_num_threads(1)
        print(*machine.describe()[:2], f"PyTorch {torch.__version__}", "", sep="\n")
        row("p = 0.5, float32", *CALLS)
        row(*["---"] * (1 + len(CALLS)))
        for backward in (False, True):
            for shape in WORK:
                found, size = measure(shape, backward, args.compiled), torch.Size(shape).numel()
                unit, scale = ("µs", 1e6) if size < 1 << 17 else ("ns/element", 1e9 / size)
                what = "x".join(map(str, shape)) + ", and backward" * backward
                row(f"{what}, {unit}", *(figure(scale * found[name]) for name in CALLS))


if __name__ == "__main__":
    main()
