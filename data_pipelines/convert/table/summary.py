"""What is found in a table's columns, before any picture is read."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from dataclasses import field as with_default

import pyarrow
from pyarrow import compute

from data_pipelines.convert.columns import ColumnReader
from data_pipelines.convert.tally import MissingLabel, bounded_reasons
from data_pipelines.convert.unreadable import NegativeWords, check_readable
from data_pipelines.convert.values import ValueReader
from data_pipelines.shards.field import Field

_CLASSES_SHOWN = 4


@dataclass(frozen=True)
class ColumnSummary:
    """One column of a table.

    Attributes:
        column: Its name.
        kind: Kind of its field, `group`, `split`, or empty for a column that is left out.
        found: The values found, in words.
        empty: Number of cells without a label.
        unreadable: Number of cells of each value that cannot be read.
        note: What else to tell the user.
    """

    column: str
    kind: str
    found: str
    empty: int = 0
    unreadable: Mapping[str, int] = with_default(default_factory=dict)
    note: str = ""


def cell_counts(column: pyarrow.ChunkedArray) -> dict[str, int]:
    """Return the number of cells of each text, without empty ones."""
    counted = compute.value_counts(column.combine_chunks())
    texts = counted.field("values").to_pylist()
    return {
        text: count
        for text, count in zip(texts, counted.field("counts").to_pylist(), strict=True)
        if text is not None
    }


def summarise_fields(table: pyarrow.Table, reader: ColumnReader) -> list[ColumnSummary]:
    """Return a summary of the column of each field.

    Raises:
        UnreadableColumnsError: Nothing of a column can be read.
        DataError: A binary column has -1 as well as 0.
    """
    summaries, labelled = [], {}
    negatives = NegativeWords()
    for name, column in reader.columns.items():
        counts = cell_counts(table[column])
        field = reader.fields[name]
        empty = table.num_rows - sum(counts.values())
        if not field.is_scalar:
            summaries.append(ColumnSummary(column, field.kind, _pictures(field), empty))
            continue
        read, unreadable, words = _read(reader.values[name], counts)
        negatives.add({name: words})
        labelled[name] = sum(read.values())
        empty = table.num_rows - labelled[name] - sum(unreadable.values())
        found = _found(field, read)
        summaries.append(ColumnSummary(column, field.kind, found, empty, unreadable))
    lost = dict(zip(reader.columns, (summary.unreadable for summary in summaries), strict=True))
    check_readable(labelled, lost)
    return summaries


def _read(
    reader: ValueReader, counts: Mapping[str, int]
) -> tuple[Counter[float], dict[str, int], set[str]]:
    """Return the number of cells of each stored value, of each unreadable one, and negatives."""
    read: Counter[float] = Counter()
    unreadable: Counter[str] = Counter()
    negatives = set()
    for text, count in counts.items():
        try:
            value = reader.read(text)
        except MissingLabel as missing:
            unreadable[str(missing)] += count
            continue
        if value is not None:
            read[value] += count
        if reader.kind == "binary" and value == 0 and (word := reader.negative(text)):
            negatives.add(word)
    return read, bounded_reasons([unreadable]), negatives


def _found(field: Field, read: Mapping[float, int]) -> str:
    """Return the values of a scalar field in words."""
    if not read:
        return "no value"
    if field.kind == "binary":
        return f"0 x {read.get(0, 0)}, 1 x {read.get(1, 0)}"
    if field.kind == "regression":
        mean = sum(value * count for value, count in read.items()) / sum(read.values())
        return f"{min(read):.4g} to {max(read):.4g}, mean {mean:.4g}"
    return _classes(field)


def _pictures(field: Field) -> str:
    if field.kind == "image":
        return ""
    if field.kind == "dense_classification":
        return _classes(field)
    return f"{field.dtype or 'numbers'}, {field.channels} channel{'s' * (field.channels > 1)}"


def _classes(field: Field) -> str:
    shown = ", ".join(field.classes[:_CLASSES_SHOWN])
    more = ", ..." if len(field.classes) > _CLASSES_SHOWN else ""
    return f"{len(field.classes)} classes: {shown}{more}"
