"""The promise that the examples run: those of the docstrings, the README and docs/, on every backend."""

import doctest
import importlib
import pkgutil
import re
from pathlib import Path

import pytest

import dropfast

ROOT = Path(__file__).parent.parent
DOORS = ["dask", "jax", "keras", "tensorflow", "torch"]  # theirs need the frameworks, and run in tests/doors
BEYOND_NUMPY = rf"^>>> (import|from) (dropfast\.)?({'|'.join([*DOORS, 'numba', 'xarray'])})\b"
ALL_PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
PAGES = [page for page in ALL_PAGES if page.stem not in DOORS]
MARKDOWN = sorted({*ROOT.glob("*.md"), *ROOT.glob("*/README.md"), *ROOT.glob("docs/**/*.md")})

MODULES = [
    "dropfast",
    *sorted(
        module.name
        for module in pkgutil.walk_packages(dropfast.__path__, "dropfast.", onerror=lambda name: None)
        if not {"__main__", "_jax_ffi", *DOORS} & set(module.name.split("."))
    ),
]


def run(test: doctest.DocTest) -> None:
    report: list[str] = []
    runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS)
    results = runner.run(test, out=report.append, clear_globs=False)
    assert results.failed == 0, "".join(report)


@pytest.mark.parametrize("name", MODULES)
def test_docstrings(backend: str, name: str) -> None:
    module = importlib.import_module(name)
    for test in doctest.DocTestFinder(exclude_empty=True).find(module, name):
        run(test)


def test_public_names_have_examples() -> None:
    for thing in (
        dropfast,
        dropfast.dropout,
        dropfast.Dropout,
        dropfast.Mask,
        dropfast.Mask.apply,
        dropfast.Mask.kept,
        dropfast.Mask.compress,
        dropfast.Mask.expand,
        dropfast.thin,
        dropfast.thin.take,
        dropfast.thin.put,
        dropfast.thin.add,
        dropfast.show_config,
    ):
        assert doctest.DocTestParser().get_examples(thing.__doc__ or ""), thing


def examples_of(page: Path, without: str | None = None) -> str:
    """The blocks marked as Python that show a session; they share their names, as a reader would expect."""
    blocks = re.findall(r"^```(?:python|pycon)\n(.*?)^```", page.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)
    return "\n".join(
        block for block in blocks if ">>> " in block and not (without and re.search(without, block, re.MULTILINE))
    )


def session_of(page: Path, without: str | None = None) -> doctest.DocTest:
    return doctest.DocTestParser().get_doctest(examples_of(page, without), {}, page.name, str(page), 0)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_pages(backend: str, page: Path) -> None:
    run(session_of(page, without=BEYOND_NUMPY))  # tests/doors runs all of them


@pytest.mark.parametrize("page", ALL_PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_python_blocks_are_python(page: Path) -> None:
    for block in re.findall(r"^```python\n(.*?)^```", page.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE):
        if ">>> " not in block:
            compile(block, str(page), "exec")


def test_readme_has_examples_that_run() -> None:
    assert examples_of(ROOT / "README.md")


def test_each_guarantee_has_tests_that_are_there() -> None:
    page = (ROOT / "docs" / "guarantees.md").read_text(encoding="utf-8")
    named = set(re.findall(r"`(test_\w+)`", page))
    written = {
        name
        for path in (ROOT / "tests").rglob("test_*.py")
        for name in re.findall(r"^def (test_\w+)", path.read_text(encoding="utf-8"), re.MULTILINE)
    }
    assert named
    assert named <= written, f"no such tests: {named - written}"


def without_code(page: Path) -> str:
    return re.sub(r"^```(?!{).*?^```$", "", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)


def anchors_of(page: Path) -> set[str]:
    """The anchors that code hosts give the headings of a page, and Sphinx too."""
    headings = re.findall(r"^#+ (.*)$", without_code(page), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", MARKDOWN, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    """Where the pages are read as they are; on the site it is for tests/site to see to."""
    for link in re.findall(r"\]\(([^()\s]+)\)", re.sub(r"`[^`\n]*`", "", without_code(page))):
        if re.match(r"[a-z]+:", link):
            continue
        path, _, anchor = link.partition("#")
        target = page.parent / path if path else page
        assert target.exists(), link
        assert not anchor or anchor in anchors_of(target), link
