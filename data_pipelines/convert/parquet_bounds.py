"""The size of a parquet file when it is decompressed, checked before it is read."""

from __future__ import annotations

from pathlib import Path

from pyarrow import ArrowException, parquet

from data_pipelines.errors import DataError

# The rows of a group are decompressed together. Pictures compress little, label maps up to a
# hundred times, a group of one repeated value many thousand times.
MAX_ROW_GROUP_BYTES = 256 * 2**20  # more only if the file holds its share
MAX_EXPANSION = 256  # bytes for each one in the file


def check_parquet(dataset: Path) -> None:
    """Check the row groups of a parquet file, or of those in a folder, by their footers.

    Raises:
        DataError: A row group is far larger than its part of the file.
    """
    files = sorted(dataset.rglob("*.parquet")) if dataset.is_dir() else [dataset]
    for file in files:
        try:
            metadata = parquet.read_metadata(file)
        except (ArrowException, OSError):  # the reader of the dataset reports it
            continue
        for number in range(metadata.num_row_groups):
            group = metadata.row_group(number)
            columns = range(group.num_columns)
            stored = sum(group.column(column).total_compressed_size for column in columns)
            size = sum(group.column(column).total_uncompressed_size for column in columns)
            if size > max(MAX_ROW_GROUP_BYTES, MAX_EXPANSION * stored):
                raise DataError(
                    f"{file}: row group {number} has {size} bytes in {stored} compressed ones, "
                    f"allowed are {MAX_ROW_GROUP_BYTES}, or {MAX_EXPANSION} times as many"
                )
