"""Tables of text, on the console and in Markdown."""

import re
from collections.abc import Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text

from detector.core.errors import one_line

UNFOLDED = 1000
# what Markdown would read as more than text; an underscore inside a word is text
_MARKUP = re.compile(r"[\\`*~<>&|\[\]]|(?<!\w)_|_(?!\w)")


def show(columns: Sequence[str], rows: Sequence[Sequence[str]], title: str = "") -> None:
    """Print a table; its texts are shown as they are, without markup and control characters."""
    table = Table(title=Text(title) if title else None)
    for i, column in enumerate(columns):
        table.add_column(Text(one_line(column)), no_wrap=i == 0, overflow="fold")
    for row in rows:
        table.add_row(*(Text(one_line(cell)) for cell in row))
    console = Console()
    if not console.is_terminal:  # a file or a pipe is as wide as the table
        console.width = console.measure(table, options=console.options.update(max_width=UNFOLDED)).maximum
    console.print(table)


def markdown(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """The first column to the left, the others to the right; the texts are shown as they are."""
    head, *body = [[_MARKUP.sub(r"\\\g<0>", one_line(cell)) for cell in line] for line in (columns, *rows)]
    lines = [head, ["---"] + ["--:"] * (len(columns) - 1), *body]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"
