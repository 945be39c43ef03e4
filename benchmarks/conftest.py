"""The set-up of a run: threads are limited before a peer is imported, and every report says what it was made on."""

from collections.abc import Iterator
from typing import Any

import pytest

from dropfast.bench import machine
from dropfast.bench.case import Case


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("dropfast")
    group.addoption(
        "--threads", type=int, default=1, metavar="N", help="threads of each contender (default: %(default)s)"
    )


def pytest_report_header(config: pytest.Config) -> list[str]:
    with machine.limit_threads(config.getoption("threads")):
        return machine.describe()


def pytest_benchmark_update_machine_info(config: pytest.Config, machine_info: dict[str, Any]) -> None:
    with machine.limit_threads(config.getoption("threads")):
        machine_info["dropout"] = machine.info()


@pytest.fixture(scope="session", autouse=True)
def _limited_threads(pytestconfig: pytest.Config) -> Iterator[None]:
    with machine.limit_threads(pytestconfig.getoption("threads")):
        yield


@pytest.fixture(scope="session")
def copies() -> dict[Case, float]:
    """Median seconds of np.copyto for each case that has been measured: what the others are compared with."""
    return {}
