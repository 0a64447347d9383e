"""Tables drawn for the terminal by rich, and as Markdown."""

from __future__ import annotations

from collections.abc import Sequence

from rich.box import SIMPLE_HEAD
from rich.table import Table
from rich.text import Text

from mtkd_jax.system.text import in_markdown
from mtkd_jax.types import printable

Cells = list[list[str]]
Sheet = tuple[list[str], Cells]  # header and cells
Sections = tuple[list[str], list[tuple[str, Cells]]]  # header, and cells under titles


def render(header: Sequence[str], cells: Cells) -> Table:
    """One table for the terminal; where it is too wide the names of its rows are folded, and no number."""
    table = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0), show_edge=False)
    table.add_column(as_text(header[0]), overflow="fold")
    for name in header[1:]:
        table.add_column(as_text(name), justify="right", no_wrap=True)
    for row in cells:
        table.add_row(*map(as_text, row))
    return table


def as_text(text: str) -> Text:
    """As it is: neither rich nor the terminal reads anything into the names that stand in a table."""
    return Text(printable(text))


def render_sections(header: Sequence[str], sections: Sequence[tuple[str, Cells]]) -> list:
    """A table with a title above each section, in 100 columns where the first one can be folded to that.

    rich has no cell that spans columns: every section is a table of its own with the same widths.
    """
    widths = [width - 2 for width in column_widths(header, sections)]
    widths[0] = min(widths[0], 99 - sum(width + 2 for width in widths[1:]))  # a long name is folded
    found = []
    for i, (title, cells) in enumerate(sections):
        table = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0), show_edge=False, show_header=i == 0)
        for name, width in zip(header, widths):
            table.add_column(
                as_text(name),
                justify="right" if name else "left",
                width=width,
                overflow="fold",
                no_wrap=bool(name),
            )
        for row in cells:
            table.add_row(*map(as_text, row))
        found += [Text(f"\n{printable(title)}", style="bold"), table]
    return found


def column_widths(header: Sequence[str], sections: Sequence[tuple[str, Cells]]) -> list[int]:
    """Columns of the terminal that every column of a table takes, with the two beside it."""
    every_row = [header, *(row for _, cells in sections for row in cells)]
    return [max(as_text(cell).cell_len for cell in column) + 2 for column in zip(*every_row)]


def markdown(header: Sequence[str], rows: Cells) -> str:
    """A Markdown table.

    >>> print(markdown(["a", "b"], [["1", "x|y"]]))
    | a | b |
    |---|---|
    | 1 | x\\|y |
    """
    lines = [header, *rows]
    text = ["| " + " | ".join(map(in_markdown, line)) + " |" for line in lines]
    return "\n".join([text[0], "|" + "---|" * len(header), *text[1:]])
