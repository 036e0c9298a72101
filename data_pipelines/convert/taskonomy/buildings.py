"""The assignment of a Taskonomy release's buildings to splits."""

from __future__ import annotations

import csv
import hashlib
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

from data_pipelines.errors import DataError

SPLITS = ("train", "val", "test")
_CSV_PATTERN = "train_val_test_*.csv"
_YES, _NO = frozenset({"1", "true"}), frozenset({"", "0", "false"})


@dataclass(frozen=True)
class BuildingSplits:
    """The rule that assigns buildings to splits; all views of a building are in one split.

    Attributes:
        table: The release's CSV (id, train, val, test); None takes the one in the data's folder.
            Without any, the attributes below are used.
        val: Buildings of the split val.
        val_fraction: Fraction of the buildings in val where none is named, chosen by a hash of
            their names: at least one of two or more, none where the fraction is 0.
    """

    table: Path | None = None
    val: tuple[str, ...] = ()
    val_fraction: float = 0.1

    def __post_init__(self) -> None:
        if not 0 <= self.val_fraction < 1:
            raise ValueError(f"val_fraction: {self.val_fraction} must be at least 0 and below 1")
        if self.table is not None and self.val:
            raise ValueError("val and table: give at most one of them")

    def assign(self, root: Path, buildings: Collection[str]) -> Mapping[str, str]:
        """Return the split of every building; buildings that a table does not name are absent.

        Raises:
            DataError: The table cannot be used, `root` holds several tables, or a building named
                for val does not exist.
        """
        unknown = sorted(set(self.val) - set(buildings))
        if unknown:
            raise DataError(
                f"{root}: val buildings {', '.join(unknown)}: not there, allowed are "
                f"{', '.join(sorted(buildings))}"
            )
        if self.val:
            return {name: "val" if name in self.val else "train" for name in buildings}
        table = self.table or _table_in(root)
        if table is not None:
            assigned = _read_table(table)
            return {name: assigned[name] for name in buildings if name in assigned}
        rounded = round(self.val_fraction * len(buildings))
        count = max(rounded, 1) if self.val_fraction and len(buildings) > 1 else 0
        ranked = sorted(buildings, key=lambda name: hashlib.sha256(name.encode()).digest())
        return {name: "val" if rank < count else "train" for rank, name in enumerate(ranked)}


def _table_in(root: Path) -> Path | None:
    tables = sorted(root.glob(_CSV_PATTERN))
    if len(tables) > 1:
        names = ", ".join(path.name for path in tables)
        raise DataError(f"{root}: several split tables, name one of {names}")
    return tables[0] if tables else None


def _read_table(path: Path) -> dict[str, str]:
    assigned = {}
    try:
        with open(path, newline="") as file:
            rows = csv.DictReader(file, skipinitialspace=True)
            for row in rows:
                chosen = [split for split in SPLITS if _flag(path, rows.line_num, row, split)]
                if len(chosen) > 1:
                    raise DataError(f"{path}: line {rows.line_num}: in {' and '.join(chosen)}")
                if chosen:
                    assigned[row["id"]] = chosen[0]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path}: cannot be read: {error}") from error
    return assigned


def _flag(path: Path, line: int, row: Mapping[str, str | None], split: str) -> bool:
    value = (row.get(split) or "").strip().lower()
    if "id" not in row or value not in _YES | _NO:
        raise DataError(
            f"{path}: line {line}: {split} is {value!r}; needed are 0 or 1 in columns "
            f"{', '.join(SPLITS)}, and a column id"
        )
    return value in _YES
