"""What dropout costs in whole models of PyTorch: steps with PyTorch's own, convert(), enable() and none, in turns.

python benchmarks/models.py [--threads 1 2] [--seconds 20] [--picture models.png] [gcn gat mc tabular droq ...]
"""

import argparse
import importlib.util
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import numpy as np
import torch
from matplotlib.figure import Figure
from threadpoolctl import threadpool_limits
from torch import nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode

import dropfast.torch
from dropfast import _backend
from dropfast.bench import machine

sys.path.append(str(Path(__file__).parent))
from networks import NETWORKS, Network, Step

WAYS = {"torch": "PyTorch's own", "convert": "convert()", "enable": "enable()", "none": "no dropout"}
KINDS = "module", "function", "attention"
LEAST = 2  # rounds, also where one takes longer than all should


# ---- what drops ----------------------------------------------------------------------------------


class Call(NamedTuple):
    """One that drops: by which kind of caller, of how many elements, at which rate, and whether backwards too."""

    kind: str
    size: int
    p: float
    backward: bool


class Calls(TorchFunctionMode):
    """Notes the calls of dropout in a step."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.found: list[Call] = []
        self._in_module = False
        self._hooks = [
            hook
            for module in model.modules()
            if isinstance(module, nn.Dropout)
            for hook in (module.register_forward_pre_hook(self._enter), module.register_forward_hook(self._leave))
        ]

    def _enter(self, *_: object) -> None:
        self._in_module = True

    def _leave(self, *_: object) -> None:
        self._in_module = False

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        for hook in self._hooks:
            hook.remove()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is functional.dropout:
            self._note_dropout(*args, **kwargs)
        elif func is functional.scaled_dot_product_attention:
            self._note_attention(*args, **kwargs)
        return func(*args, **kwargs)

    def _note_dropout(self, x: torch.Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> None:
        if training and p > 0:
            self.found.append(Call("module" if self._in_module else "function", x.numel(), p, x.requires_grad))

    def _note_attention(self, query: torch.Tensor, key: torch.Tensor, *_: Any, dropout_p: float = 0, **__: Any) -> None:
        if dropout_p > 0:
            self.found.append(Call("attention", query.numel() // query.shape[-1] * key.shape[-2], dropout_p, True))


def calls(network: Network) -> list[Call]:
    model, step = network.make(network.p)
    with Calls(model) as mode:
        step()
    return mode.found


# ---- what it costs -------------------------------------------------------------------------------


def clock_for(threads: int) -> Callable[[], float]:
    """The clock to read: with one thread it stands still while others have the processor."""
    return time.process_time if threads == 1 else time.perf_counter


def kernels(found: list[Call], clock: Callable[[], float]) -> tuple[float, float]:
    """The time that the masks alone take, in seconds: of arrays that are in the caches, and of arrays that are not."""
    other = np.zeros(1 << 26, np.uint8)  # what takes their place there, more than any cache
    totals = [0.0, 0.0]
    for (_, size, p, backward), n in Counter(found).items():
        x, out, mask = np.ones(size, np.float32), np.empty(size, np.float32), dropfast.Mask(size, p, key=1)
        for cold in False, True:
            taken = []
            for _ in range(9):
                if cold:
                    other += 1
                start = clock()
                mask.apply(x, out=out)
                taken.append(clock() - start)
            totals[cold] += n * (1 + backward) * median(taken)
    return totals[0], totals[1]


def times(network: Network, seconds: float, clock: Callable[[], float]) -> dict[str, float]:
    """The median time of a step in each way, in seconds."""
    steps: dict[str, Step] = {}
    for way in WAYS:
        torch.manual_seed(0)
        model, steps[way] = network.make(0.0 if way == "none" else network.p)
        if way == "convert":
            dropfast.torch.convert(model)
    found: dict[str, list[float]] = {way: [] for way in WAYS}
    end = time.perf_counter() + seconds
    while len(found["none"]) < (LEAST if seconds else 1) or time.perf_counter() < end:
        for way, taken in found.items():
            with dropfast.torch.enable() if way == "enable" else nullcontext():
                steps[way]()  # once for the caches and the heap, which are as another way has left them
                start = clock()
                steps[way]()
                taken.append(clock() - start)
    return {way: median(taken) for way, taken in found.items()}


@contextmanager
def threads_are(n: int) -> Iterator[None]:
    torch.set_num_threads(n)
    with threadpool_limits(n), _backend.on_threads(n):
        yield


# ---- what is shown -------------------------------------------------------------------------------


def table(*rows: list[str]) -> None:
    for row in rows:
        print("|", " | ".join(row), "|", flush=True)


def show_calls(found: dict[str, list[Call]]) -> None:
    print("\nCalls of dropout in a step, and million elements, by who calls:\n")
    table(["", *KINDS, "all"], ["---"] * (2 + len(KINDS)))
    for name, noted in found.items():
        cells = []
        for kind in (*KINDS, ""):
            sizes = [call.size for call in noted if kind in ("", call.kind)]
            cells.append(f"{len(sizes)}: {sum(sizes) / 1e6:.3g}" if sizes else "")
        table([NETWORKS[name].title, *cells])


def show_times(found: dict[str, list[Call]], threads: int, seconds: float) -> dict[str, dict[str, float]]:
    print(f"\n{threads} thread{'s' * (threads > 1)}:\n")
    kinds = ["torch", "`convert`", "`enable`", "no dropout", "its kernels", "and cold", "times as fast with `enable`"]
    table(["ms a step", *kinds], ["---"] * 8)
    measured, clock = {}, clock_for(threads)
    with threads_are(threads):
        for name, noted in found.items():
            measured[name] = times(NETWORKS[name], seconds, clock)
            cells = [f"{1e3 * time:.3g}" for time in (*measured[name].values(), *kernels(noted, clock))]
            gain = measured[name]["torch"] / measured[name]["enable"]
            table([NETWORKS[name].title, *cells, f"{gain:.2g}" if gain < 10 else f"{gain:.0f}"])
    return measured


# Okabe's and Ito's colours, for all kinds of sight; the markers tell them apart without.
STYLES: dict[str, dict[str, Any]] = {
    "torch": {"color": "#595959", "marker": "|", "markersize": 14, "markeredgewidth": 2},
    "convert": {"color": "#0072B2", "marker": "o", "markersize": 10, "markerfacecolor": "w", "markeredgewidth": 2},
    "enable": {"color": "#D55E00", "marker": "o", "markersize": 8},
    "none": {"color": "black", "marker": "x", "markersize": 7, "markeredgewidth": 1.5},
}


def draw(path: Path, measured: dict[int, dict[str, dict[str, float]]]) -> None:
    """Write the picture: for each model the time of a step in each way, as a part of the time with PyTorch's own."""
    names = list(next(iter(measured.values())))
    picture = Figure(figsize=(2.6 + 5.2 * len(measured), 2.4 + 0.42 * len(names)), dpi=110, layout="constrained")
    panels = picture.subplots(1, len(measured), sharey=True, squeeze=False)[0]
    for axes, (threads, found) in zip(panels, measured.items(), strict=True):
        parts = {way: [100 * found[name][way] / found[name]["torch"] for name in names] for way in WAYS}
        for way, style in STYLES.items():
            axes.plot(parts[way], range(len(names)), linestyle="none", label=WAYS[way], zorder=3, **style)
        axes.hlines(range(len(names)), parts["none"], parts["torch"], color="#cccccc", linewidth=4, zorder=1)
        axes.set_title(f"{threads} thread{'s' * (threads > 1)}", fontsize=12)
        axes.set_xlim(0, 1.04 * max(max(part) for part in parts.values()))
        axes.set_xlabel("time of a step, % of that with PyTorch's dropout", fontsize=11)
        axes.grid(axis="x", color="#eeeeee")
        axes.set_axisbelow(True)
        axes.tick_params(length=0)
        axes.spines[:].set_visible(False)
    panels[0].set_yticks(range(len(names)), [NETWORKS[name].title for name in names], fontsize=11)
    panels[0].invert_yaxis()
    handles, labels = panels[0].get_legend_handles_labels()
    picture.legend(handles, labels, loc="outside lower center", ncols=len(WAYS), fontsize=11, frameon=False)
    picture.suptitle(f"Training with dropfast on {machine.cpu()}: further left is faster", fontsize=13)
    picture.savefig(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", metavar="model", help=f"of {', '.join(NETWORKS)}; all if none is named")
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--seconds", type=float, default=20, help="for each model and number of threads, roughly")
    parser.add_argument("--picture", type=Path, metavar="PNG")
    args = parser.parse_args()
    names = args.models or list(NETWORKS)
    if unknown := set(names) - set(NETWORKS):
        parser.error(f"there is no model {', '.join(sorted(unknown))}; there are {', '.join(NETWORKS)}")
    missing = [name for name in names if importlib.util.find_spec(NETWORKS[name].needs) is None]
    print(machine.describe()[0], f"dropfast {dropfast.__version__}, PyTorch {torch.__version__}", sep="\n")
    for name in missing:
        print(f"{NETWORKS[name].title} needs {NETWORKS[name].needs}, which is not installed")
    found = {name: calls(NETWORKS[name]) for name in names if name not in missing}
    show_calls(found)
    measured = {threads: show_times(found, threads, args.seconds) for threads in args.threads}
    if args.picture:
        draw(args.picture, measured)


if __name__ == "__main__":
    main()
