"""The promises of every door, kept without a framework: it opens when it is first used, and says what it needs."""

import re
import tomllib
from pathlib import Path

import pytest
from processes import run_python

import dropfast
from dropfast import _doors

PYPROJECT = tomllib.loads((Path(__file__).parent.parent / "pyproject.toml").read_text(encoding="utf-8"))
DOORS = list(_doors.FRAMEWORKS)


def needs(door: str, got: str) -> str:
    framework, oldest = _doors.FRAMEWORKS[door]
    remedy = f'pip install "dropfast[{door}]", or ".[{door}]" in a checkout'
    return f"dropfast.{door} needs {framework} {oldest} or newer, {got}: {remedy}"


@pytest.mark.parametrize("door", DOORS)
def test_the_extra_asks_for_the_version_that_the_door_needs(door: str) -> None:
    framework, *_ = PYPROJECT["project"]["optional-dependencies"][door]
    assert re.sub(r"\[.*\]", "", framework) == f"{door}>={_doors.FRAMEWORKS[door][1]}"


def asked_for(door: str, group: str) -> str:
    """Return what a group asks of the framework of a door."""
    parts = (part for part in PYPROJECT["dependency-groups"][group] if isinstance(part, str))
    (asked,) = (found[1] for part in parts if (found := re.fullmatch(rf"{door}(?:-cpu|\[\S*\])?([=>]=\S+)", part)))
    return asked


@pytest.mark.parametrize("door", DOORS)
def test_the_doors_are_tested_with_the_oldest_versions(door: str) -> None:
    """With these themselves, and not with a later release of the same series."""
    oldest = _doors.release(_doors.FRAMEWORKS[door][1])
    asked = asked_for(door, "doors-oldest")
    assert asked.startswith("==")
    assert _doors.release(asked[2:]) == (*oldest, *(0,) * (3 - len(oldest)))


@pytest.mark.parametrize("door", DOORS)
def test_the_doors_are_tested_with_the_newest_versions(door: str) -> None:
    assert asked_for(door, "doors-newest") == f">={_doors.FRAMEWORKS[door][1]}"


@pytest.mark.parametrize("door", DOORS)
def test_the_page_says_which_version_the_door_needs(door: str) -> None:
    framework, oldest = _doors.FRAMEWORKS[door]
    page = (Path(__file__).parent.parent / "docs" / f"{door}.md").read_text(encoding="utf-8")
    assert f"{framework} {oldest} or newer" in page


def test_each_door_is_listed() -> None:
    folder = Path(dropfast.__file__).parent
    for door in DOORS:
        files = folder / f"{door}.py", folder / door / "__init__.py"
        (file,) = (file for file in files if file.exists())
        assert f'_doors.need("{door}")' in file.read_text(encoding="utf-8")
    assert dir(dropfast) == sorted([*dropfast.__all__, *DOORS])


@pytest.mark.parametrize("door", DOORS)
def test_a_framework_that_is_not_installed(door: str) -> None:
    code = f"""
import sys
sys.modules[{door!r}] = None  # Python then says that there is no such module
import dropfast
assert not hasattr(dropfast, {door!r})
try:
    dropfast.{door}.dropout
except AttributeError as error:
    print(error)
try:
    from dropfast import {door}
except ModuleNotFoundError as error:
    print(error, error.name, sep="|")
import dropfast.{door}
"""
    done = run_python(code)
    message = needs(door, "which is not installed")
    assert done.stdout.splitlines() == [message, f"{message}|{door}"], done.stderr
    assert done.stderr.splitlines()[-1] == f"ModuleNotFoundError: {message}"


#: what stands in the framework's place
STAND_INS = {
    "too-old": "__version__ = '0.1.11+cpu'",
    "no-version": "",
    "broken": "raise ImportError('a library is missing')",
    "lacks-a-part": "import dropfast_is_looking_for_this",
}


@pytest.mark.parametrize("what", STAND_INS)
@pytest.mark.parametrize("door", DOORS)
def test_a_framework_that_will_not_do(tmp_path: Path, door: str, what: str) -> None:
    (tmp_path / f"{door}.py").write_text(STAND_INS[what])
    done = run_python(f"import dropfast.{door}", env={"PYTHONPATH": str(tmp_path)})
    assert done.returncode == 1
    assert (
        done.stderr.splitlines()[-1]
        == {
            "too-old": f"ImportError: {needs(door, 'got 0.1.11+cpu')}",
            "no-version": f"ImportError: {needs(door, 'got something else of that name')}",
            "broken": "ImportError: a library is missing",
            "lacks-a-part": "ModuleNotFoundError: No module named 'dropfast_is_looking_for_this'",
        }[what]
    )


@pytest.mark.parametrize(
    ("version", "release"),
    [("2.13", (2, 13)), ("2.13.0+cpu", (2, 13, 0)), ("2.14.0a0+git1", (2, 14, 0)), ("0.10.2.dev7", (0, 10, 2))],
)
def test_versions(version: str, release: tuple[int, ...]) -> None:
    assert _doors.release(version) == release


def test_a_name_that_is_no_door() -> None:
    done = run_python("import dropfast; dropfast.troch")
    assert done.stderr.splitlines()[-1].startswith("AttributeError: module 'dropfast' has no attribute 'troch'")
    with pytest.raises(ImportError):
        exec("from dropfast import troch")


def test_help_works_without_the_frameworks() -> None:
    nothing = "".join(f"sys.modules[{door!r}] = None\n" for door in DOORS)
    done = run_python(f"import pydoc, sys\n{nothing}import dropfast\nprint(pydoc.render_doc(dropfast))")
    assert done.returncode == 0, done.stderr
    assert "Drop elements of `x` at random" in done.stdout
