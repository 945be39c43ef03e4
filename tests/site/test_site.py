"""The promise that the site is whole: every public name, every link, and what readers search. `make docs` builds it."""

import ast
import json
import re
import zlib
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
from sphinx.search.en import SearchEnglish

import dropfast

ROOT = Path(__file__).parent.parent.parent
SITE = ROOT / "build" / "docs" / "html"
PAGES = sorted(path for path in SITE.rglob("*.html") if "_static" not in path.relative_to(SITE).parts)


def public_names() -> set[str]:
    """Every name in the `__all__` of a module, read from the source: the frameworks are not there."""
    names = {f"dropfast.{kind.__name__}.{name}" for kind in (dropfast.Mask, dropfast.Dropout) for name in dir(kind)}
    names = {name for name in names if not name.rpartition(".")[2].startswith("_")}
    for path in (ROOT / "dropfast").rglob("*.py"):
        module = ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        for statement in ast.parse(path.read_text(encoding="utf-8")).body:
            match statement:
                case ast.Assign(targets=[ast.Name(id="__all__")], value=value):
                    names |= {f"{module}.{name}" for name in ast.literal_eval(value)}
    return names


def test_public_names_have_entries() -> None:
    with open(SITE / "objects.inv", "rb") as file:
        for _ in range(4):
            file.readline()
        entries = zlib.decompress(file.read()).decode().splitlines()
    documented = {name for name, kind, _ in (entry.split(" ", 2) for entry in entries) if kind.startswith("py:")}
    assert {"dropfast.Mask.apply", "dropfast.torch.enable", "dropfast.keras.convert"} <= public_names()
    assert public_names() <= documented, public_names() - documented
    assert not [name for name in documented if "._" in name.replace("__version__", "").replace("__call__", "")]


@pytest.mark.parametrize(
    ("words", "page"),
    [
        ("fallback", "start"),
        ("integration", "guide"),
        ("API reference", "api/index"),
        ("tutorial", "tutorial"),
        ("Monte Carlo dropout", "recipes"),
        ("Monte Carlo dropout", "thin"),
    ],
)
def test_search_finds(words: str, page: str) -> None:
    """By a title of the page, or of a section of it: these come first."""
    text = (SITE / "searchindex.js").read_text(encoding="utf-8")
    index = json.loads(text.removeprefix("Search.setIndex(").removesuffix(")"))
    stem = SearchEnglish({}).stem
    number = index["docnames"].index(page)
    titles = [title for title, places in index["alltitles"].items() if number in {place[0] for place in places}]
    wanted = {stem(word) for word in words.lower().split()}
    assert any(wanted <= {stem(word) for word in re.findall(r"\w+", title.lower())} for title in titles), titles


class Reader(HTMLParser):
    """What a page can be linked to by, what it links to, and what a browser loads with it."""

    def __init__(self, page: Path) -> None:
        super().__init__()
        self.anchors: set[str] = {""}
        self.links: set[str] = set()
        self.loads: set[str] = set()
        self.feed(page.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        values = {name: value for name, value in attributes if value}
        self.anchors |= {values[name] for name in ("id", "name") if name in values}
        if tag == "a" and "href" in values:
            self.links.add(values["href"])
        elif tag == "link" and "href" in values:
            self.loads.add(values["href"])
        elif "src" in values:
            self.loads.add(values["src"])


def test_links_lead_somewhere() -> None:
    readers = {page: Reader(page) for page in PAGES}
    assert len(readers) > 20
    lost = []
    for page, reader in readers.items():
        for link in reader.links | reader.loads:
            parts = urlsplit(link)
            if parts.scheme or parts.netloc:
                continue
            target = (page.parent / unquote(parts.path)).resolve() if parts.path else page
            fragment = unquote(parts.fragment)
            if not target.is_file() or (fragment and target in readers and fragment not in readers[target].anchors):
                lost.append(f"{page.relative_to(SITE)}: {link}")
    assert not lost


def test_nothing_comes_from_elsewhere() -> None:
    """The site works without a network, and tells nobody who reads it."""
    for page in PAGES:
        assert not [link for link in Reader(page).loads if urlsplit(link).scheme not in ("", "data")], page
    for style in SITE.rglob("*.css"):
        assert not re.search(r"(url\(|@import)\s*['\"]?(https?:)?//", style.read_text(encoding="utf-8")), style
