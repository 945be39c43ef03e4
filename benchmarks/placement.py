"""What it costs where x and out lie: 8 x 8 places in a page, and 6 x 6 layouts. float32, one thread.

python benchmarks/placement.py addresses|layouts [PICTURE]
"""

import math
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from matplotlib.colors import LogNorm, Normalize
from matplotlib.figure import Figure

from dropfast._report import Report
from dropfast.bench import machine
from dropfast.bench.case import Array, Case, empty
from dropfast.bench.contender import Run
from dropfast.bench.contenders import Copy, Dropfast
from dropfast.bench.measure import measure
from dropfast.bench.tables import figure

sys.path.append(str(Path(__file__).parent.parent / "tests"))
import cases

SHAPES = (16, 1024), (128, 1024), (1024, 1024)  # of the addresses: in L2, as large as L2, in L3
PLANE, IMAGES = (1024, 1024), (16, 64, 32, 32)  # of the layouts; images are samples, channels, height, width
MODES = (0.5, False), (0.1, False), (0.5, True)  # rate, shared
PASSES, ROUNDS = 7, 5  # rounds for a pair, and then it is the next one's turn

new = partial(empty, dtype=np.float32)
LAYOUTS: dict[str, Callable[[tuple[int, ...]], Array]] = {
    "C order": lambda shape: new(shape),
    "Fortran order": lambda shape: new(shape[::-1]).T,
    "channels last": lambda shape: np.moveaxis(new((shape[0], *shape[2:], shape[1])), -1, 1),
    "reversed": lambda shape: np.flip(new(shape)),
    "padded rows": lambda shape: new((*shape[:-1], shape[-1] + 5))[..., :-5],
    "every 2nd column": lambda shape: new((*shape[:-1], 2 * shape[-1]))[..., ::2],
}


@dataclass(frozen=True)
class Placed(Case):
    """A case from an array that is there to another."""

    x_and_out: tuple[Array, Array] = field(kw_only=True, compare=False)

    def x(self) -> Array:
        return self.x_and_out[0]

    def arrays(self) -> tuple[Array, Array, Array, Array]:
        x, out = self.x_and_out
        return x, x[:0], out, out[:0]


class Yardstick(Copy):
    """np.copyto of arrays that stay where they are."""

    name = "yardstick"

    def __init__(self, case: Case) -> None:
        self._run = super().prepare(case)

    def prepare(self, case: Case) -> Run:
        return self._run


class Pair(NamedTuple):
    """Times as multiples of the yardstick's: of dropfast, and of np.copyto between the same two arrays."""

    own: float
    copy: float


Places: TypeAlias = tuple[str, str]  # of x and of out


def measure_pairs(report: Report, case: Case, xs: Mapping[str, Array], outs: Mapping[str, Array]) -> dict[Places, Pair]:
    """Time all pairs, each in turns with both copies; once they all have been there, they are the next time."""
    data, contenders = case.x(), [Dropfast(), Copy(), Yardstick(case)]
    passes: dict[Places, list[Pair]] = {places: [] for places in product(xs, outs)}
    for _ in report.track(title(case), range(PASSES)):
        for places, pairs in passes.items():
            x, out = xs[places[0]], outs[places[1]]
            x[...] = data
            placed = Placed(case.shape, case.rate, shared=case.shared, x_and_out=(x, out))
            own, copy, yardstick = (timing.median for timing in measure(placed, contenders, ROUNDS))
            pairs.append(Pair(own / yardstick, copy / yardstick))
    return {places: Pair(*np.median(pairs, axis=0).tolist()) for places, pairs in passes.items()}


def at_addresses(shape: tuple[int, ...]) -> dict[str, Array]:
    """Return arrays that share one piece of memory, so that nothing differs but the place in it."""
    size, dtype = math.prod(shape), np.dtype(np.float32)
    memory = cases.at_address(0, (size + cases.PAGE // dtype.itemsize,), dtype)
    return {str(start): memory[start // dtype.itemsize :][:size].reshape(shape) for start in cases.ADDRESSES}


def modes(shape: tuple[int, ...]) -> list[Case]:
    return [Case(shape, rate, shared=shared) for rate, shared in MODES]


def title(case: Case) -> str:
    return case.name.replace(f" {case.dtype},", "")


def table(*rows: Iterable[str]) -> None:
    for row in rows:
        print("|", " | ".join(row), "|", flush=True)


def heat_map(axes: Any, values: Mapping[Places, float], norm: Normalize, colors: str) -> None:
    """Draw a square for each pair, x downwards and out to the right, with its value."""
    xs, outs = (list(dict.fromkeys(names)) for names in zip(*values, strict=True))
    grid = np.array([[values[x, out] for out in outs] for x in xs])
    image = axes.imshow(grid, norm=norm, cmap=colors)
    for (row, column), value in np.ndenumerate(grid):
        red, green, blue, _ = image.cmap(norm(value))
        dark = 0.3 * red + 0.6 * green + 0.1 * blue < 0.5
        text = f"{value:.2f}" if value < 9.995 else f"{value:.0f}"
        axes.text(column, row, text, ha="center", va="center", fontsize=8, color="w" if dark else "k")
    axes.set_xticks(range(len(outs)), outs, rotation=45, ha="right", rotation_mode="anchor")
    axes.set_yticks(range(len(xs)), xs)
    axes.tick_params(length=0, labelsize=9)
    axes.spines[:].set_visible(False)


def draw(
    path: Path,
    heading: str,
    panels: Sequence[Sequence[tuple[str, Mapping[Places, float]]]],
    norm: Normalize,
    colors: str,
    labels: tuple[str, str],
) -> None:
    """Write the picture: rows of heat maps, each with its title."""
    rows, columns = len(panels), len(panels[0])
    picture = Figure(figsize=(3.7 * columns + 0.6, 3.9 * rows + 0.9), dpi=110, layout="constrained")
    for row, line in zip(picture.subplots(rows, columns, squeeze=False), panels, strict=True):
        for axes, (name, values) in zip(row, line, strict=True):
            heat_map(axes, values, norm, colors)
            axes.set_title(name, fontsize=11)
    picture.supylabel(labels[0], fontsize=12)
    picture.supxlabel(labels[1], fontsize=12)
    picture.suptitle(heading, fontsize=14)
    picture.savefig(path)


def relative(times: Mapping[Places, float]) -> dict[Places, float]:
    """Speeds as parts of the highest."""
    fastest = min(times.values())
    return {places: fastest / time for places, time in times.items()}


def addresses(report: Report, path: Path) -> None:
    head = "slowest of fastest", "x, out there", "share of np.copyto: least", "median", "np.copyto, slowest of fastest"
    table(["float32", *head], ["---"] * (1 + len(head)))
    panels = []
    for shape in SHAPES:
        xs, outs = at_addresses(shape), at_addresses(shape)
        line, copies = [], []
        for case in modes(shape):
            pairs = measure_pairs(report, case, xs, outs)
            speeds = relative({places: pair.own for places, pair in pairs.items()})
            copies.append(relative({places: pair.copy for places, pair in pairs.items()}))
            shares = [pair.copy / pair.own for pair in pairs.values()]
            slowest = min(speeds, key=speeds.__getitem__)
            numbers = figure(min(shares)), figure(float(np.median(shares))), figure(min(copies[-1].values()))
            table([title(case), figure(speeds[slowest]), ", ".join(slowest), *numbers])
            line.append((title(case), speeds))
        medians = {places: float(np.median([copy[places] for copy in copies])) for places in copies[0]}
        panels.append([*line, (f"{title(case).partition(',')[0]}, np.copyto", medians)])
    draw(
        path,
        f"Speed at each pair of addresses as a part of the best pair's: {machine_name()}",
        panels,
        Normalize(0.8, 1),
        "viridis",
        ("x: bytes behind a page", "out: bytes behind a page"),
    )


def layouts(report: Report, path: Path) -> None:
    panels = []
    for shape in PLANE, IMAGES:
        names = [name for name in LAYOUTS if len(shape) > 2 or name != "channels last"]
        xs, outs = ({name: LAYOUTS[name](shape) for name in names} for _ in range(2))
        line = []
        for case in modes(shape):
            pairs = measure_pairs(report, case, xs, outs)
            times = {places: pair.own / pair.copy for places, pair in pairs.items()}
            print()
            table([f"{title(case)}: from, to", *names], ["---"] * (1 + len(names)))
            table(*([x, *(figure(times[x, out]) for out in names)] for x in names))
            line.append((title(case), times))
        panels.append(line)
    draw(
        path,
        f"Time as a multiple of np.copyto's between the same arrays: {machine_name()}",
        panels,
        LogNorm(0.25, 4),
        "RdBu_r",
        ("x", "out"),
    )


def machine_name() -> str:
    config = machine.info()["dropfast"]
    return f"{machine.cpu()} ({config['isa'] or 'no native backend'})"


def main() -> None:
    parts = {"addresses": addresses, "layouts": layouts}
    part, *rest = sys.argv[1:] or [""]
    if part not in parts or len(rest) > 1:
        raise SystemExit(__doc__)
    report = Report()
    with machine.limit_threads(1):
        print(*machine.describe()[:2], "", sep="\n")
        parts[part](report, Path(*rest or [f"{part}.png"]))


if __name__ == "__main__":
    main()
