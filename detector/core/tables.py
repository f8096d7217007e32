"""Functions that write tables of text to the console and in Markdown."""

import re
from collections.abc import Mapping, Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text

from detector.core.errors import one_line

UNFOLDED = 1000  # characters: the widest table in a file or a pipe that is not folded
# characters that Markdown would interpret; an underscore inside a word is plain text
_MARKUP = re.compile(r"[\\`*~<>&|\[\]]|(?<!\w)_|_(?!\w)")


def show(
    columns: Sequence[str], rows: Sequence[Sequence[str]], title: str = "", terms: Mapping[str, str] | None = None
) -> None:
    """Print a table. Its texts are verbatim: they have no markup, and control characters become spaces.

    Args:
        columns: the names of the columns.
        rows: the cells of each row.
        title: the text above the table.
        terms: the meanings of words of the table, which are printed below the table.
    """
    table = Table(title=Text(title) if title else None)
    for i, column in enumerate(columns):
        table.add_column(Text(one_line(column)), no_wrap=i == 0, overflow="fold")
    for row in rows:
        table.add_row(*(Text(one_line(cell)) for cell in row))
    console = Console()
    if not console.is_terminal:  # a file or a pipe has no width, so the table is not folded
        console.width = console.measure(table, options=console.options.update(max_width=UNFOLDED)).maximum
    console.print(table)
    for term, meaning in (terms or {}).items():
        console.print(Text(f"  {term}: {meaning}"), soft_wrap=True)


def markdown(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a table in Markdown. Its texts are verbatim. The first column is left-aligned, the others right-aligned.

    Args:
        columns: the names of the columns.
        rows: the cells of each row.
    """
    head, *body = [[_MARKUP.sub(r"\\\g<0>", one_line(cell)) for cell in line] for line in (columns, *rows)]
    lines = [head, ["---"] + ["--:"] * (len(columns) - 1), *body]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"
