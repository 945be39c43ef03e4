"""How demo and benchmark speak: headings, text, tables and progress, in colour on a terminal and plain elsewhere."""

from __future__ import annotations

import sys
import textwrap
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TypeVar

from rich import box
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

T = TypeVar("T")
WIDTH = 80  # of paragraphs, at most


class Report:
    """Where they print. Only ASCII text, so that every terminal and log file can show it."""

    def __init__(self) -> None:
        self._console = Console(highlight=False)

    def heading(self, text: str) -> None:
        """Begin a section."""
        self._console.print(f"\n[bold cyan]{text}[/]\n[cyan]{'-' * len(text)}[/]")

    def line(self, text: str = "") -> None:
        """Print a line as it is, however long."""
        self._console.print(Text(text), soft_wrap=True)

    def text(self, text: str) -> None:
        """Print a paragraph."""
        width = min(WIDTH, self._console.width)
        self._console.print(Text(textwrap.fill(" ".join(text.split()), width, break_on_hyphens=False)))

    def save(self, what: str, path: Path, write: Callable[[Path], object]) -> bool:
        """Write a file and say where it is. False, after a word of what went wrong, if it could not be written."""
        try:
            write(path)
        except OSError as error:
            print(f"dropfast: {path} could not be written: {error}", file=sys.stderr)
            return False
        self.line(f"{what} {path.absolute()}")
        return True

    def table(self, columns: Sequence[str], rows: Iterable[Sequence[Text | str]], title: str | None = None) -> None:
        """Print a table: the first column to the left, the others, which are numbers, to the right. No row: a rule."""
        table = Table(box=box.SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
        table.title, table.title_justify, table.title_style = title, "left", "bold"
        for i, name in enumerate(columns):
            table.add_column(name, justify="right" if i else "left", overflow="fold")
        for row in rows:
            if row:
                table.add_row(*row)
            else:
                table.add_section()
        self._console.print(table)

    def track(self, what: str, items: Sequence[T]) -> Iterator[T]:
        """Yield the items, with a progress bar on a terminal that goes when all is done."""
        columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
        with Progress(*columns, console=self._console, transient=True, disable=not self._console.is_terminal) as bar:
            yield from bar.track(items, description=what)
