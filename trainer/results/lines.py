"""Lines of text for terminals of 80 columns: wrapped sentences, tables, counts."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence

from dmtg.names import shortened

WIDTH = 80
_LONGEST_NAME = 28  # characters of a name in a table
_SHORTEST_NAME = 8  # however wide the other columns are


def wrapped(text: str, first: str = "", others: str = "  ") -> list[str]:
    """Return a text as lines that are broken between words only.

    Args:
        text: A sentence or a list.
        first: Indentation of the first line.
        others: Indentation of the other lines.
    """
    return textwrap.wrap(
        text,
        WIDTH,
        initial_indent=first,
        subsequent_indent=others,
        break_long_words=False,
        break_on_hyphens=False,
    )


def table(columns: Mapping[str, Sequence[str]], texts: Sequence[str] = ()) -> list[str]:
    """Return aligned lines below a header.

    Args:
        columns: Cells by header. Those of the first column are names, which are shortened so that
            the lines fit.
        texts: Headers of other columns that are aligned to the left, as text is.
    """
    (head, names), *others = columns.items()
    widths = [max(map(len, (header, *cells))) for header, cells in others]
    left = WIDTH - sum(width + 2 for width in widths) - 2
    longest = max(_SHORTEST_NAME, min(_LONGEST_NAME, left))
    names = [shortened(name, longest) for name in names]
    widths = [max(map(len, (head, *names))), *widths]
    rows = zip(names, *(cells for _, cells in others), strict=True)
    return [
        "  "
        + "  ".join(
            text.ljust(width) if header in (head, *texts) else text.rjust(width)
            for text, width, header in zip(row, widths, columns, strict=True)
        ).rstrip()
        for row in (tuple(columns), *rows)
    ]


def counted(number: int, noun: str, plural: str = "s") -> str:
    """Return a count with its noun, as in "1 task" or "5 tasks"."""
    return f"{number} {noun}{'' if number == 1 else plural}"
