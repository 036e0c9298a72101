"""The converter for tables of labels: one row for each image, one column for each label."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path

import pyarrow

from data_pipelines.convert.columns import ColumnReader, read_columns
from data_pipelines.convert.jobs import ConversionJobs, shuffled
from data_pipelines.convert.mapping import FieldMap
from data_pipelines.convert.options import ConversionOptions
from data_pipelines.convert.run import convert
from data_pipelines.convert.table.files import TableFiles, default_files
from data_pipelines.convert.table.inference import infer_map
from data_pipelines.convert.table.keys import sample_keys
from data_pipelines.convert.table.prefetch import prefetched_rows
from data_pipelines.convert.table.read import read_table
from data_pipelines.convert.table.splits import divided_rows
from data_pipelines.convert.table.summary import ColumnSummary, cell_counts, summarise_fields
from data_pipelines.convert.tally import MissingLabel, Tally
from data_pipelines.errors import DataError
from data_pipelines.shards.encoded import EncodedSample, Storage
from data_pipelines.shards.manifest import Field, Manifest
from dmtg.files import sha256_of

DEFAULT_VAL_SHARE = 0.1  # where the table has no column of splits
_TRIED = 100  # images that are looked for before a conversion


@dataclass(frozen=True)
class TableOptions:
    """The arguments that only tables have; those that are given replace the entries of a mapping.

    Attributes:
        images: Folder or URL below which rows name files; None takes the folder of the table, and
            allows any URL.
        image_column: Column of the images, where there is no mapping.
        split_column: Column that names the split of each row.
        val_share: Share of the rows of `train` that become `val`.
        group_by: Column whose equal values stay in one split.
        skip_unreachable: Whether to leave images out whose server gives no answer.
    """

    images: str | None = None
    image_column: str | None = None
    split_column: str | None = None
    val_share: float | None = None
    group_by: str | None = None
    skip_unreachable: bool = False


@dataclass(frozen=True)
class TableSource:
    """A table that is read, described and divided into splits, but not yet converted.

    Attributes:
        path: The file.
        field_map: The mapping, with all options.
        is_inferred: Whether the mapping was inferred.
        columns: A summary of each column.
        splits: The numbers of the rows of each split.
        skipped: Number of rows in no split, by reason.
        rows: What reads the samples.
    """

    path: Path
    field_map: FieldMap
    is_inferred: bool
    columns: tuple[ColumnSummary, ...]
    splits: Mapping[str, Sequence[int]]
    skipped: Mapping[str, int]
    rows: TableRows


@dataclass(frozen=True)
class TableRows:
    """Read rows of a table; a reference is the number of a row."""

    table: pyarrow.Table
    keys: tuple[str, ...]
    reader: ColumnReader

    @property
    def fields(self) -> Mapping[str, Field]:
        """The fields that a sample can have."""
        return self.reader.fields

    def samples(self, refs: Sequence[str], tally: Tally) -> Iterator[EncodedSample]:
        """Yield the samples of rows."""
        numbers = [int(ref) for ref in refs]
        rows = self.table.take(numbers).to_pylist()
        for number, (reader, row) in zip(numbers, prefetched_rows(self.reader, rows), strict=True):
            sample = reader.sample(self.keys[number], row, tally)
            if sample is not None:
                yield sample


def open_table(
    path: Path, field_map: FieldMap | None, options: ConversionOptions, table_options: TableOptions
) -> TableSource:
    """Read a table, infer its mapping where none is given, and divide its rows into splits.

    Args:
        path: The file: CSV, TSV, JSON lines or parquet.
        field_map: The column of each field; None infers it.
        options: Its tasks are fields of the mapping.
        table_options: The options of tables.

    Raises:
        DataError: Table, mapping or options cannot be used.
        UnreadableColumnsError: Nothing of a column can be read.
    """
    table = read_table(path)
    files = _files(path, table_options)
    notes: Mapping[str, str] = {}
    is_inferred = field_map is None
    if field_map is None:
        inferred = infer_map(
            table,
            files,
            dataset=path.stem,
            image_column=table_options.image_column,
            split_column=table_options.split_column,
            group_by=table_options.group_by,
            progress=options.progress,
        )
        field_map, notes = inferred.field_map, inferred.notes
    elif table_options.image_column is not None:
        raise DataError("--image-column: a mapping names its image itself")
    field_map = _with_classes(table, field_map).updated(
        split_column=table_options.split_column,
        val_share=table_options.val_share,
        group_by=table_options.group_by,
    )
    if field_map.split_column is None:
        share = DEFAULT_VAL_SHARE if field_map.val_share is None else field_map.val_share
        field_map = field_map.updated(val_share=share)
    storage = Storage(options.portable)
    features = dict.fromkeys(table.column_names)
    reader = read_columns(field_map, features, options.tasks, options.image_size, storage, files)
    splits, skipped = divided_rows(table, field_map)
    columns = _summaries(table, field_map, reader, notes)
    image = field_map.image
    paths = table[reader.columns[image]].to_pylist()
    _check_images(path, paths, reader.suffixes.get(image, ""), files, reader.columns[image])
    kept = sorted(set(reader.columns.values()))
    rows = TableRows(table.select(kept), sample_keys(paths), reader)
    return TableSource(path, field_map, is_inferred, columns, splits, skipped, rows)


def convert_table(source: TableSource, out: Path, options: ConversionOptions) -> Manifest:
    """Write the shards of a table; a rerun with the same arguments continues.

    Args:
        source: The table, opened with the same options.
        out: Folder of the shards.
        options: The options that do not depend on the source.

    Raises:
        DataError: `out` cannot be used, or a row names a file that it may not name.
        UnreadableColumnsError: Nothing of a column can be read.
    """
    field_map = source.field_map
    jobs = ConversionJobs(
        source="csv",
        arguments={
            "table": source.path.name,
            "table_sha256": sha256_of(source.path),
            "map": field_map.model_dump_json(exclude_defaults=True),
            "samples_per_shard": options.samples_per_shard,
            **options.arguments([name for name in source.rows.fields if name != field_map.image]),
        },
        splits=shuffled(
            {name: map(str, rows) for name, rows in source.splits.items()},
            seed=options.seed,
            limit=options.limit,
        ),
        samples_per_shard=options.samples_per_shard,
        skipped=source.skipped,
    )
    return convert(
        out,
        field_map.dataset or source.path.stem,
        field_map.image,
        source.rows,
        jobs,
        workers=options.workers,
        progress=options.progress,
    )


def _files(path: Path, options: TableOptions) -> TableFiles:
    if options.images is None:
        files = default_files(path)
    elif "://" in options.images or Path(options.images).is_dir():
        files = TableFiles(options.images)
    else:
        raise DataError(f"--images {options.images}: is no folder")
    return replace(files, skip_unreachable=options.skip_unreachable)


def _with_classes(table: pyarrow.Table, field_map: FieldMap) -> FieldMap:
    """Return the mapping with the classes found for multiclass fields that name none."""
    fields = {}
    for name, entry in field_map.fields.items():
        column = entry.get("column", name)
        lacks_classes = entry.get("kind") == "multiclass" and "classes" not in entry
        if lacks_classes and column in table.column_names:
            texts = cell_counts(table[column]).keys() - _texts_of(entry.get("values"))
            entry = {**entry, "classes": sorted(texts)}
        fields[name] = entry
    return field_map.model_copy(update={"fields": fields})


def _texts_of(values: object) -> set[str]:
    return {str(key) for key in values} if isinstance(values, Mapping) else set()


def _summaries(
    table: pyarrow.Table, field_map: FieldMap, reader: ColumnReader, notes: Mapping[str, str]
) -> tuple[ColumnSummary, ...]:
    """Return a summary of every column, in the table's order."""
    found = {summary.column: summary for summary in summarise_fields(table, reader)}
    special = {field_map.split_column: "split", field_map.group_by: "group"}
    of_fields = {entry.get("column", name) for name, entry in field_map.fields.items()}
    for column in table.column_names:
        note = notes.get(column, "")
        if column in found:
            found[column] = replace(found[column], note=note)
        elif column in special:
            values = f"{len(cell_counts(table[column]))} values"
            found[column] = ColumnSummary(column, special[column], values)
        else:
            is_field = column in of_fields
            note = "not among the tasks" if is_field else note or "not in the mapping"
            found[column] = ColumnSummary(column, "", "", note=note)
    return tuple(found[column] for column in table.column_names)


def _check_images(
    path: Path, paths: Sequence[str | None], suffix: str, files: TableFiles, column: str
) -> None:
    """Look for the first images of a local folder: a wrong folder is found before a conversion.

    Raises:
        DataError: None of them is there.
    """
    tried = [name + suffix for name in islice(filter(None, paths), _TRIED)]
    if not tried:
        raise DataError(f"{path}: column {column!r} of the images is empty")
    if any(files.is_remote(name) for name in tried):
        return
    for name in tried:
        try:
            files.read(name)
        except MissingLabel:
            continue
        return
    raise DataError(
        f"{path}: column {column!r}: none of the first {len(tried)} images is below {files.root}, "
        f"such as {tried[0]!r}; name their folder by --images"
    )
