"""Tables of labels as columns of text: CSV, TSV, JSON lines and parquet are read alike."""

from __future__ import annotations

import codecs
import csv
import io
import json
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow
from pyarrow import compute, parquet
from pyarrow import csv as arrow_csv

from data_pipelines.convert.parquet_bounds import check_parquet
from data_pipelines.errors import DataError
from data_pipelines.reading.values import value_text
from dmtg.names import check_text, shortened

MAX_TABLE_BYTES = 4 * 2**30  # of text, or of the columns of a parquet file when decompressed
MAX_COLUMNS = 10_000
_DELIMITERS = ",;\t|"
_HEAD_BYTES = 2**20  # in which the first row ends
_BLOCK_BYTES = 2**24  # that a row of a CSV file may have


def read_table(path: Path) -> pyarrow.Table:
    """Return a table whose columns are texts; null where a cell is empty.

    Args:
        path: A file that ends with one of `FORMATS`.

    Raises:
        DataError: It cannot be read, has no rows, names a column twice, or is over a bound.
    """
    reader = FORMATS.get(path.suffix.lower())
    if reader is None:
        raise DataError(f"{path}: {path.suffix!r} is not one of {', '.join(FORMATS)}")
    try:
        table = reader(path)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path}: cannot be read: {error}") from error
    except pyarrow.ArrowException as error:
        message = str(error).splitlines()[0]
        hint = "; save the table as UTF-8" if "UTF8" in message else ""
        raise DataError(f"{path}: cannot be read: {shortened(message, 300)}{hint}") from error
    if not table.num_rows:
        raise DataError(f"{path}: has no rows")
    return table


def _check_names(path: Path, names: Sequence[str]) -> None:
    """Check the names of the columns.

    Raises:
        DataError: A name is empty, given twice or no text, or there are too many.
    """
    if len(names) > MAX_COLUMNS:
        raise DataError(f"{path}: {len(names)} columns, allowed are at most {MAX_COLUMNS}")
    twice = [name for name, count in Counter(names).items() if count > 1]
    if twice:
        raise DataError(f"{path}: two columns have the name {shortened(repr(twice[0]))}")
    for number, name in enumerate(names, start=1):
        _check_name(path, number, name)


def _check_name(path: Path, number: int, name: str) -> None:
    try:
        check_text("the name", name)
    except ValueError as error:
        raise DataError(f"{path}: column {number}: {error}") from error


def _read_csv(path: Path) -> pyarrow.Table:
    _check_size(path, path.stat().st_size)
    with open(path, "rb") as file:
        start = file.read(_HEAD_BYTES)
    if start.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        raise DataError(f"{path}: UTF-16 text; save the table as UTF-8")
    head = start.decode("utf-8-sig", errors="replace")
    first_line = head.partition("\n")[0]
    delimiter = "\t" if path.suffix.lower() == ".tsv" else max(_DELIMITERS, key=first_line.count)
    named = next(csv.reader(io.StringIO(head, newline=""), delimiter=delimiter), [])
    # Other programs write the numbers of the rows as a column without a name.
    names = [name.strip() or f"column {number}" for number, name in enumerate(named, start=1)]
    _check_names(path, names)
    table = arrow_csv.read_csv(
        path,
        read_options=arrow_csv.ReadOptions(
            use_threads=False,  # errors then name the row
            block_size=_BLOCK_BYTES,
            column_names=names,
            skip_rows_after_names=1,
        ),
        parse_options=arrow_csv.ParseOptions(delimiter=delimiter, newlines_in_values=True),
        convert_options=arrow_csv.ConvertOptions(
            column_types=dict.fromkeys(names, pyarrow.string()), strings_can_be_null=False
        ),
    )
    return pyarrow.table([_cells(column) for column in table.columns], names)


def _read_json_lines(path: Path) -> pyarrow.Table:
    _check_size(path, path.stat().st_size)
    columns: dict[str, list[str | None]] = {}
    count = 0
    for number, record in _records(path):
        for name, value in record.items():
            cells = columns.get(name)
            if cells is None:
                cells = columns[name] = []
                if len(columns) > MAX_COLUMNS:
                    raise DataError(f"{path}: line {number}: more than {MAX_COLUMNS} columns")
            cells += [None] * (count - len(cells))
            cells.append(value_text(value))
        count += 1
    _check_names(path, list(columns))
    texts = [cells + [None] * (count - len(cells)) for cells in columns.values()]
    return pyarrow.table([pyarrow.array(c, pyarrow.large_string()) for c in texts], list(columns))


def _records(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield line number and object of each line that is not blank."""
    with open(path, encoding="utf-8-sig") as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            try:
                record = json.loads(line, object_pairs_hook=_without_twice)
            except (ValueError, RecursionError) as error:
                raise DataError(f"{path}: line {number}: not JSON: {error}") from error
            if not isinstance(record, dict):
                raise DataError(
                    f"{path}: line {number}: {type(record).__name__} found, each line is an object"
                )
            yield number, record


def _without_twice(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    record = dict(pairs)
    if len(record) < len(pairs):
        raise ValueError("an object has a key twice")
    return record


def _read_parquet(path: Path) -> pyarrow.Table:
    check_parquet(path)
    file = parquet.ParquetFile(path)
    _check_names(path, file.schema_arrow.names)
    groups = (file.metadata.row_group(number) for number in range(file.metadata.num_row_groups))
    _check_size(path, sum(group.total_byte_size for group in groups))
    names, columns = file.schema_arrow.names, []
    for name in names:
        column = file.read([name]).column(0)
        columns.append(_texts(column))
    return pyarrow.table(columns, names)


def _texts(column: pyarrow.ChunkedArray) -> pyarrow.ChunkedArray:
    """Return the cells of a column of any type as text; NaN is no value."""
    if pyarrow.types.is_dictionary(column.type):
        column = compute.cast(column, column.type.value_type)
    if pyarrow.types.is_floating(column.type):
        column = compute.if_else(compute.is_nan(column), None, column)
    try:
        return _cells(compute.cast(column, pyarrow.large_string()))
    except (pyarrow.ArrowNotImplementedError, pyarrow.ArrowInvalid):  # lists, structures, bytes
        kind = pyarrow.scalar(f"({column.type})", pyarrow.large_string())
        return compute.if_else(compute.is_valid(column), kind, None)


def _cells(column: pyarrow.ChunkedArray) -> pyarrow.ChunkedArray:
    """Return texts without blanks at their ends; null for empty ones."""
    trimmed = compute.utf8_trim_whitespace(compute.cast(column, pyarrow.large_string()))
    return compute.if_else(compute.equal(trimmed, ""), None, trimmed)


def _check_size(path: Path, size: int) -> None:
    if size > MAX_TABLE_BYTES:
        raise DataError(f"{path}: {size} bytes of text, allowed are at most {MAX_TABLE_BYTES}")


FORMATS: dict[str, Callable[[Path], pyarrow.Table]] = {
    ".csv": _read_csv,
    ".tsv": _read_csv,
    ".jsonl": _read_json_lines,
    ".ndjson": _read_json_lines,
    ".parquet": _read_parquet,
}
