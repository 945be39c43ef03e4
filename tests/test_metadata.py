"""The promise that what is said of dropfast in several places is the same: its version, its addresses, its licence."""

import re
import tomllib
from pathlib import Path

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
CITATION = (ROOT / "CITATION.cff").read_text(encoding="utf-8")

# Where a reader finds addresses; .github is not part of a source distribution.
FILES = "*.md", "*.cff", "docs/**/*.md", "docs/*.py", ".github/**/*.yml"
PAGES = [page for pattern in FILES for page in ROOT.glob(pattern)]


def cited(field: str) -> str:
    found = re.search(rf"^{field}: (.+)$", CITATION, re.MULTILINE)
    assert found
    return found[1]


def test_the_version_stands_in_one_place() -> None:
    assert "version" in PROJECT["dynamic"]
    assert not re.search(r"^(version|date-released):", CITATION, re.MULTILINE)


def test_the_citation_is_of_this_project() -> None:
    assert cited("title") == PROJECT["name"]
    assert cited("abstract") == PROJECT["description"]
    assert cited("license") == PROJECT["license"]
    assert cited("repository-code") == PROJECT["urls"]["Repository"]
    assert cited("url") == PROJECT["urls"]["Documentation"]


def test_addresses_of_the_project_are_those_of_its_metadata() -> None:
    ours = PROJECT["urls"]["Repository"], PROJECT["urls"]["Documentation"]
    host = re.compile(r"https://[\w.]*\bgithub(?:usercontent)?\.(?:com|io)/[\w./-]*dropfast[\w./-]*")
    found = {(page.name, url) for page in PAGES for url in host.findall(page.read_text(encoding="utf-8"))}
    assert ("CITATION.cff", ours[0]) in found
    raw = ours[0].replace("https://github.com", "https://raw.githubusercontent.com")
    assert [pair for pair in found if not pair[1].startswith((*ours, raw))] == []
