"""Everyone who is installed, side by side: one group for each case, np.copyto first.

With --benchmark-disable each contender does a small case once, and the result is checked.
"""

from itertools import product
from typing import Any

import cases
import pytest

from dropfast.bench.case import Case
from dropfast.bench.contender import Contender
from dropfast.bench.contenders import CONTENDERS

SHAPES = (4, 10), (128, 1024), (1024, 1024), (4096, 4096)  # from the cost of a call to that of DRAM
SMALL = ((65, 257),)
RATES = [cases.RATES[name] for name in ("0.5", "0.1")]
DTYPES = [name for name in cases.DTYPES if name in ("float32", "bfloat16")]

# Half a second each is enough for a median, and five calls of the slowest.
pytestmark = pytest.mark.benchmark(max_time=0.5, min_rounds=5)

# What each test asks for.
ASKED: dict[str, dict[str, Any]] = {
    "test_forward": {},
    "test_forward_and_backward": {"backward": True},
    "test_shared": {"shared": True},
}


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    config = metafunc.config
    shapes = SMALL if config.getoption("benchmark_disable") else SHAPES
    asked = ASKED[metafunc.function.__name__] | {"threads": config.getoption("threads")}
    all_cases = [Case(shape, rate, dtype, **asked) for dtype, shape, rate in product(DTYPES, shapes, RATES)]
    installed = [contender for contender in CONTENDERS if contender.version() is not None]
    parameters = [
        pytest.param(case, contender, id=f"{case.name}, {contender.name}".replace(", ", "-").replace(" ", "_"))
        for case in all_cases
        for contender in installed
        if contender.takes(case)
    ]
    metafunc.parametrize(("case", "contender"), parameters)


def side_by_side(benchmark: Any, case: Case, contender: Contender, copies: dict[Case, float]) -> None:
    run = contender.prepare(case)
    contender.check(case, run())  # it is compiled and warm now
    benchmark.group = case.name
    contender.check(case, benchmark(run))
    benchmark.extra_info["version"] = contender.version()
    benchmark.extra_info["threads"] = case.threads
    if benchmark.stats is None:  # --benchmark-disable
        return
    median = benchmark.stats.stats.median
    if contender.name == "np.copyto":
        copies[case] = median
    benchmark.extra_info["ns per element"] = 1e9 * median / case.size
    benchmark.extra_info["GB/s"] = case.moved / median / 1e9
    if case in copies:  # not where tests were picked by name
        benchmark.extra_info["share of np.copyto"] = copies[case] / median


def test_forward(benchmark: Any, case: Case, contender: Contender, copies: dict[Case, float]) -> None:
    side_by_side(benchmark, case, contender, copies)


def test_forward_and_backward(benchmark: Any, case: Case, contender: Contender, copies: dict[Case, float]) -> None:
    side_by_side(benchmark, case, contender, copies)


def test_shared(benchmark: Any, case: Case, contender: Contender, copies: dict[Case, float]) -> None:
    side_by_side(benchmark, case, contender, copies)
