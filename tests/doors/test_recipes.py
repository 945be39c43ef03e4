"""docs/recipes.md runs as it stands, with the frameworks, Numba and xarray."""

from pathlib import Path

from test_docs import run, session_of

PAGE = Path(__file__).parents[2] / "docs" / "recipes.md"


def test_page() -> None:
    session = session_of(PAGE)
    assert len(session.examples) > 80
    run(session)
