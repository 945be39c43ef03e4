"""The build reads this: README.md for the index of packages, where links have to lead to the repository."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

FILES = "https://github.com/dropfast/dropfast/blob/main/"
PICTURES = "https://raw.githubusercontent.com/dropfast/dropfast/main/"


def absolute(text: str) -> str:
    """Return a Markdown text whose relative links are absolute."""
    text = re.sub(r"(!\[[^]]*\]\()(?!https:)", rf"\g<1>{PICTURES}", text)
    return re.sub(r"(\]\()(?!https:)", rf"\g<1>{FILES}", text)


def dynamic_metadata(settings: Mapping[str, Any], project: Mapping[str, Any]) -> dict[str, Any]:
    return {"readme": {"content-type": "text/markdown", "text": absolute(Path("README.md").read_text("utf-8"))}}
