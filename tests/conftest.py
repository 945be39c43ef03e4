"""The fixtures. Every test that uses `backend` runs on each backend and instruction set of this machine."""

import shutil
from collections.abc import Generator, Iterator
from pathlib import Path

import numpy as np
import pytest
from expected import using
from hypothesis import HealthCheck, settings

import dropfast
from dropfast import _backend

# Runs repeat exactly, and take their time. The backend is set once for all examples of a test, which is what is meant.
settings.register_profile(
    "repeatable",
    derandomize=True,
    deadline=None,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
# `--hypothesis-profile=thorough`: 50 times as many examples, other ones in each run; what fails says how to repeat it.
settings.register_profile(
    "thorough", settings.get_profile("repeatable"), max_examples=5000, derandomize=False, print_blob=True
)
settings.load_profile("repeatable")

TIME_LIMIT = 600  # seconds for a test: many times what any takes here, under a sanitizer or emulated too
KNOWN_ISAS = ("avx512", "avx2", "neon", "baseline")


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("dropfast")
    group.addoption("--require-native", action="store_true", help="fail at once if the compiled backend is missing")
    group.addoption(
        "--require-isa",
        action="append",
        default=[],
        metavar="NAME",
        help="fail at once if this instruction set cannot be tested here (may be given several times)",
    )


def pytest_configure(config: pytest.Config) -> None:
    here = ", ".join(_backend.available())
    if config.getoption("--require-native") and _backend.native is None:
        raise pytest.UsageError(f"--require-native: the compiled backend is missing, there is only {here}")
    for isa in config.getoption("--require-isa"):
        if f"native:{isa}" not in _backend.available():
            raise pytest.UsageError(f"--require-isa: {isa} cannot be tested here, there is only {here}")


def pytest_report_header() -> list[str]:
    config = dropfast.show_config(mode="dicts")
    available = _backend.available()
    missing = [isa for isa in KNOWN_ISAS if f"native:{isa}" not in available]
    return [
        f"dropfast: {dropfast.__version__}, stream {config['stream']}, NumPy {np.__version__}",
        f"backends tested: {', '.join(available)}; not available here, so not tested: {', '.join(missing) or 'none'}",
        f"by default: {_backend.current()}, {config['threads']} threads of {config['threading']}",
    ]


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report() -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    # PyTorch's tests of its operators load a profile of their own when they are imported, and the next files have it.
    profile = settings.get_current_profile_name()
    report = yield
    settings.load_profile(profile)
    return report


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    # A hang is a failure. From a thread, for a signal would wait for the call that hangs; it ends the whole run.
    limit = TIME_LIMIT * settings().max_examples // 100
    for item in items:
        if not item.get_closest_marker("timeout"):
            item.add_marker(pytest.mark.timeout(limit, method="thread"))


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    # Here and not as the fixture's params, so that the backend comes first in the id: native:avx2-float32-n65.
    if "backend" in metafunc.fixturenames:
        metafunc.parametrize("backend", _backend.available(), indirect=True)


@pytest.fixture
def package(tmp_path: Path) -> Path:
    """A copy of the package without its native module; the tests put another in its place."""
    installed = Path(dropfast.__file__).parent
    copy = tmp_path / "dropfast"
    shutil.copytree(installed, copy, ignore=shutil.ignore_patterns("_native.*", "__pycache__"))
    return copy


@pytest.fixture
def backend(request: pytest.FixtureRequest) -> Iterator[str]:
    """The name of the backend in use."""
    with using(request.param):
        yield request.param
