"""Slices of the splits of a dataset, as the `datasets` library writes them: `train[:80%]`."""

from __future__ import annotations

import re
from dataclasses import dataclass

from data_pipelines.errors import DataError

_BOUND = r"\s*(?:(-?\d{1,15})\s*(%)?)?\s*"
_SLICE = re.compile(rf"([^\[\]]+?)\s*(?:\[{_BOUND}:{_BOUND}\])?", re.ASCII)


@dataclass(frozen=True)
class SplitSlice:
    """A part of the rows of a split.

    Attributes:
        split: Name of the split.
        start: First row, or percentage of the rows, and whether it is one; None is the first.
        stop: The row after the last, likewise.
    """

    split: str
    start: tuple[int, bool] | None = None
    stop: tuple[int, bool] | None = None

    @classmethod
    def parse(cls, text: str) -> SplitSlice:
        """Read `NAME`, or `NAME[FROM:TO]` with row numbers or percentages; negative from the end.

        Raises:
            DataError: The text is something else, or a percentage is above 100.
        """
        match = _SLICE.fullmatch(text)
        if match is not None:
            start, stop = _bound(*match.group(2, 3)), _bound(*match.group(4, 5))
            if not any(bound and bound[1] and abs(bound[0]) > 100 for bound in (start, stop)):
                return cls(match[1], start, stop)
        raise DataError(
            f"split {text!r}: allowed are a name, or a slice of rows or percent such as "
            "train[:80%], train[80%:] or train[1000:2000]"
        )

    @property
    def is_whole(self) -> bool:
        """Whether it is all of the split."""
        return self.start is None and self.stop is None

    def bounds(self, num_rows: int) -> tuple[int, int]:
        """Return the first row and the row after the last, of a split with so many rows."""

        def row(bound: tuple[int, bool] | None, default: int) -> int:
            if bound is None:
                return default
            number, is_percent = bound
            # As `datasets` rounds, so that [:80%] and [80%:] divide the rows.
            rows = round(number * num_rows / 100) if is_percent else number
            return min(max(rows + num_rows if number < 0 else rows, 0), num_rows)

        return row(self.start, 0), row(self.stop, num_rows)

    def __str__(self) -> str:
        def text(bound: tuple[int, bool] | None) -> str:
            return "" if bound is None else f"{bound[0]}{'%' if bound[1] else ''}"

        return (
            self.split if self.is_whole else f"{self.split}[{text(self.start)}:{text(self.stop)}]"
        )


def _bound(number: str | None, percent: str | None) -> tuple[int, bool] | None:
    return (int(number), percent is not None) if number else None
