"""Tables on a terminal that fit its width."""

from __future__ import annotations

from collections.abc import Sequence

from rich.cells import cell_len
from rich.console import Console
from rich.markup import escape
from rich.table import Table

_BORDER = 3  # columns of a terminal that a column of a table takes beside its text
_KEY_SHARE = 0.4  # of the width that the first column may take; longer names are folded


def print_table(console: Console, header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print a table; what does not fit beside each other is printed below, with the first column.

    Args:
        console: Its width is that of the tables.
        header: Titles of the columns.
        rows: Plain texts of the cells, as many as there are titles.
    """
    columns = list(zip(header, *rows, strict=True))
    first = min(_width(columns[0]), max(10, round(_KEY_SHARE * console.width)))
    for part in _parts([_width(column) for column in columns[1:]], console.width - first - 4):
        table = Table()
        table.add_column(escape(header[0]), overflow="fold", max_width=first)
        for number in part:
            table.add_column(escape(header[1 + number]))
        for row in rows:
            table.add_row(escape(row[0]), *(escape(row[1 + number]) for number in part))
        console.print(table)


def _parts(widths: Sequence[int], room: int) -> list[list[int]]:
    """Return the numbers of the columns, in lists that fit into the room; at least one each."""
    parts: list[list[int]] = [[]]
    left = room
    for number, width in enumerate(widths):
        if parts[-1] and width + _BORDER > left:
            parts.append([])
            left = room
        parts[-1].append(number)
        left -= width + _BORDER
    return parts


def _width(cells: Sequence[str]) -> int:
    """Return the width of a column: its title may be wrapped between words, its values not."""
    title, *values = cells
    longest = max(map(cell_len, title.split()), default=0)
    return max([longest, *(cell_len(line) for value in values for line in value.splitlines())])
