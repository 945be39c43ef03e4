"""The site that Sphinx makes of these pages: `make docs`. They are Markdown that reads as well without it."""

import importlib
import inspect
import os
import posixpath
import re
import subprocess
import sys
import tomllib
from pathlib import Path

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.ext.autodoc.mock import mock
from sphinx.util.docutils import SphinxDirective

import dropfast
from dropfast import _doors

ROOT = Path(__file__).parent.parent
SOURCE = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["urls"]["Repository"]

project = "dropfast"
author = project_copyright = "the dropfast developers"
version = release = dropfast.__version__

extensions = ["myst_parser", "numpydoc", "sphinx.ext.autodoc", "sphinx_copybutton", "sphinx_design"]
nitpicky = True
highlight_language = "text"
myst_enable_extensions = ["colon_fence"]
myst_heading_anchors = 4  # as code hosts make them

# ---- the docstrings ----------------------------------------------------------------------------

autodoc_typehints = "none"  # numpydoc's sections have the types, in words
autosummary_generate = False
default_role = "py:obj"  # single backticks: a link where it is a name of ours
nitpick_ignore_regex = [("py:obj", ".*")]
numpydoc_show_class_members = False  # autodoc shows them
# Summaries need not be extended, nor descriptions begin with a capital; not each method has an example and others
# to see; and "as in `Dropout`" has no type.
numpydoc_validation_checks = {"all", "ES01", "EX01", "SA01", "SA03", "PR04", "PR06", "PR08"}
numpydoc_validation_exclude = {r"\.ThinSequential$"}  # `thin` makes these, not the user

# What the integrations say of themselves does not need 2 GB of frameworks: mocks stand for these, and for what looks
# into them when it is imported. Sphinx finds the integrations imported.
_doors.fault = lambda door: None
sys.modules["dropfast._jax_ffi"] = None
private = {".".join(path.relative_to(ROOT).with_suffix("").parts) for path in ROOT.glob("dropfast/*/_[a-z]*.py")}
with mock([*_doors.FRAMEWORKS, *private - {"dropfast.jax._handler"}]):
    import keras.saving

    keras.saving.register_keras_serializable = lambda package: lambda kind: kind
    for door in _doors.FRAMEWORKS:
        importlib.import_module(f"dropfast.{door}")
for kind in (*vars(dropfast.torch).values(), *vars(dropfast.keras).values()):
    if isinstance(kind, type):  # or the mocks that are their bases would have the say
        parameters = inspect.signature(kind.__init__).parameters.values()
        kind.__signature__ = inspect.Signature([each for each in parameters if each.name != "self"])


def docstring_is_read(app: Sphinx, what: str, name: str, thing: object, options: object, lines: list[str]) -> None:
    """Make links of the pages that a docstring names."""
    lines[:] = [re.sub(r"docs/(\w+)\.md", r":doc:`docs/\1.md </\1>`", line) for line in lines]


# ---- how it looks ------------------------------------------------------------------------------

html_theme = "pydata_sphinx_theme"
html_title = project
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_favicon = "_static/logo.svg"
html_show_sourcelink = html_copy_source = False
alone = ["benchmarks", "changelog", "contributing", "dieharder/README", "guarantees", "stream", "suite"]
html_sidebars = {page: [] for page in alone}  # which would have nothing in them
html_context = {
    **dict(zip(("github_user", "github_repo"), SOURCE.split("/")[-2:], strict=True)),
    "github_version": "main",
    "doc_path": "docs",
}
html_theme_options = {
    "logo": {"image_light": html_favicon, "image_dark": html_favicon, "text": project, "alt_text": project},
    "github_url": SOURCE,
    "use_edit_page_button": True,
    "header_links_before_dropdown": 5,
    "show_toc_level": 2,
    "pygments_dark_style": "github-dark",
    "footer_start": ["copyright"],
    "footer_end": [],
}
copybutton_exclude = ".linenos, .gp, .go, .gt"  # what is copied runs: neither prompts nor results

# ---- the pages: as a reader of the repository has them, and on the site ---------------------------

#: Files elsewhere in the repository that are pages here; of the README, each section where it is.
PAGES = {
    "README.md#the-question": "docs/question.md",
    "README.md#in-your-framework": "docs/guide.md#integrations",
    "README.md": "docs/start.md",
    "CHANGELOG.md": "docs/changelog.md",
    "CONTRIBUTING.md": "docs/contributing.md",
    "benchmarks/README.md": "docs/suite.md",
    "examples/README.md": "docs/examples.md",
}


def follow(target: str, file: str, page: str) -> str:
    """Return what a link in a file of the repository is on a page of the site, both by their paths there."""
    path, mark, anchor = target.partition("#")
    path = posixpath.normpath(posixpath.join(posixpath.dirname(file), path)) if path else file
    if not (ROOT / path).exists():  # an address of others, or code that looks like a link
        return target
    whole = PAGES.get(path + mark + anchor) or PAGES.get(path, path) + mark + anchor
    if not whole.startswith("docs/"):
        return f"{SOURCE}/blob/main/{whole}"
    return posixpath.relpath(whole, posixpath.dirname(page))


def read(text: str, file: str, page: str) -> str:
    """Return a file's Markdown as a page of the site: with its links, and no blank line at the end of a session."""
    text = re.sub(r"(?<=\]\()[^()\s]+(?=\))", lambda link: follow(link[0], file, page), text)
    return re.sub(r"^(```py.*?\n)\n(?=```$)", r"\1", text, flags=re.DOTALL | re.MULTILINE)


def page_is_read(app: Sphinx, docname: str, source: list[str]) -> None:
    """Take a page of these."""
    page = f"docs/{docname}.md"
    source[0] = read(source[0], page, page)


def file_is_included(app: Sphinx, path: Path, docname: str, source: list[str]) -> None:
    """Take a file that such a page includes."""
    source[0] = read(source[0], (app.srcdir / path).resolve().relative_to(ROOT).as_posix(), f"docs/{docname}.md")


class Help(SphinxDirective):
    """What the command line says of itself."""

    optional_arguments = 1

    def run(self) -> list[nodes.Node]:
        """Return it as the session of a terminal."""
        words = [*self.arguments, "--help"]
        command = [sys.executable, "-P", "-m", "dropfast", *words]
        said = subprocess.run(command, check=True, capture_output=True, text=True, env={**os.environ, "COLUMNS": "90"})
        text = f"$ dropfast {' '.join(words)}\n{said.stdout}"
        return [nodes.literal_block(text, text, language="console")]


def setup(app: Sphinx) -> None:
    """Connect what is above."""
    app.connect("autodoc-process-docstring", docstring_is_read)
    app.connect("source-read", page_is_read)
    app.connect("include-read", file_is_included)
    app.add_directive("help", Help)
