"""The promise that README's links lead somewhere from an index of packages, too: the build makes them absolute."""

import re
import runpy
from pathlib import Path

ROOT = Path(__file__).parent.parent
LINK = r"\]\(([^)\s]+)\)"


def test_relative_links_are_those_of_the_repository() -> None:
    description = runpy.run_path(str(ROOT / "docs" / "description.py"))
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    pictures = re.findall(r"!\[[^]]*" + LINK, readme)
    assert pictures
    for link, found in zip(re.findall(LINK, readme), re.findall(LINK, description["absolute"](readme)), strict=True):
        if link.startswith("https://"):
            assert found == link
        else:
            assert (ROOT / link.partition("#")[0]).is_file()
            assert found == description["PICTURES" if link in pictures else "FILES"] + link
