"""The rows of a table in each split: named by a column, or divided by a hash."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection

import pyarrow

from data_pipelines.convert.columns import allowed_names
from data_pipelines.convert.mapping import FieldMap
from data_pipelines.convert.splits import (
    SPLIT_NAMES,
    TRAIN,
    VAL,
    check_val_share,
    group_hash,
    val_groups,
)
from data_pipelines.convert.tally import bounded_reasons
from data_pipelines.convert.values import quoted
from data_pipelines.errors import DataError
from dmtg.names import is_file_name

_NUMBERED_SPLITS = {"train": "0", "val": "1", "test": "2"}  # as in CelebA


def divided_rows(
    table: pyarrow.Table, field_map: FieldMap
) -> tuple[dict[str, list[int]], dict[str, int]]:
    """Return the numbers of the rows of each split, and the number of rows in none, by reason.

    Raises:
        DataError: The mapping divides the rows by what is not there.
    """
    skipped: dict[str, int] = {}
    if field_map.split_column is None:
        if field_map.splits is not None:
            raise DataError("splits: a table needs `split_column`, the column that names them")
        rows = {TRAIN: list(range(table.num_rows))}
    else:
        rows, skipped = _named_splits(table, field_map)
    check_val_share(field_map.val_share, rows)
    if not field_map.val_share:
        return rows, skipped
    train = rows[TRAIN]
    groups = _groups(table, field_map)
    chosen = val_groups([groups[row] for row in train], field_map.val_share)
    rows[TRAIN] = [row for row in train if groups[row] not in chosen]
    rows[VAL] = [row for row in train if groups[row] in chosen]
    return rows, skipped


def _named_splits(
    table: pyarrow.Table, field_map: FieldMap
) -> tuple[dict[str, list[int]], dict[str, int]]:
    column = field_map.split_column
    assert column is not None, "the caller has checked it"
    if column not in table.column_names:
        raise DataError(f"split_column {column!r}: {allowed_names(column, table.column_names)}")
    texts = table[column].to_pylist()
    named = field_map.splits or usual_splits({text for text in texts if text})
    names = {text: name for name, text in named.items()}
    rows: dict[str, list[int]] = {name: [] for name in named}
    skipped: Counter[str] = Counter()
    for number, text in enumerate(texts):
        if text in names:
            rows[names[text]].append(number)
        else:
            skipped["no split" if text is None else f"split {quoted(text)}"] += 1
    empty = [name for name, numbers in rows.items() if not numbers]
    if empty:
        raise DataError(f"splits.{empty[0]} {named[empty[0]]!r}: in no row of column {column!r}")
    return rows, bounded_reasons([skipped])


def _groups(table: pyarrow.Table, field_map: FieldMap) -> list[str]:
    """Return the hash of the group of each row: of its value, or else of its image."""
    image = field_map.fields[field_map.image].get("column", field_map.image)
    paths = table[image].to_pylist()
    names = paths if field_map.group_by is None else table[field_map.group_by].to_pylist()
    return [
        group_hash(name if name is not None else f"{path} {number}")
        for number, (name, path) in enumerate(zip(names, paths, strict=True))
    ]


def usual_splits(texts: Collection[str]) -> dict[str, str]:
    """Return the text of each split; its name is that text, or the usual name for it.

    Raises:
        DataError: A text is no name of a split, or two texts are one split.
    """
    if set(texts) <= set(_NUMBERED_SPLITS.values()):
        return {name: text for name, text in _NUMBERED_SPLITS.items() if text in texts}
    splits: dict[str, str] = {}
    for text in sorted(texts):
        name = SPLIT_NAMES.get(text.casefold(), text)
        if name in splits or not is_file_name(name):
            raise DataError(
                f"split_column: found {', '.join(map(repr, sorted(texts)[:20]))}; name the text "
                "of each split in a mapping file: `splits: {train: TEXT, val: TEXT}`"
            )
        splits[name] = text
    order = list(dict.fromkeys(SPLIT_NAMES.values()))
    return dict(sorted(splits.items(), key=lambda s: order.index(s[0]) if s[0] in order else 3))
