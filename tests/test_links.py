"""The promise that links lead somewhere: from page to page, and from the index of packages to the repository."""

import re
import runpy
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PAGES = [
    *sorted(ROOT.glob("*.md")),
    *sorted(path for folder in ("benchmarks", "docs", "examples") for path in (ROOT / folder).rglob("*.md")),
]
LINK = r"\]\(([^)\s]+)\)"


def anchors(page: Path) -> set[str]:
    """The names by which GitHub knows the headings of a page."""
    text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
    headings = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def assert_leads_somewhere(link: str, page: Path) -> None:
    path, _, anchor = link.partition("#")
    target = (page.parent / path).resolve() if path else page
    assert target.exists(), f"{page.name} links to {link}, which is not there"
    assert not anchor or anchor in anchors(target), f"{page.name} links to {link}, and there is no such heading"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    for link in re.findall(LINK, page.read_text(encoding="utf-8")):
        if not link.startswith("https://"):
            assert_leads_somewhere(link, page)


def test_the_description_for_the_index_has_the_links_of_readme() -> None:
    description = runpy.run_path(str(ROOT / "docs" / "description.py"))
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    pictures = re.findall(r"!\[[^]]*" + LINK, readme)
    assert pictures
    for link, found in zip(re.findall(LINK, readme), re.findall(LINK, description["absolute"](readme)), strict=True):
        kind = "" if link.startswith("https://") else description["PICTURES" if link in pictures else "FILES"]
        assert found == kind + link
        assert not link.startswith("#")  # which the index does not know
