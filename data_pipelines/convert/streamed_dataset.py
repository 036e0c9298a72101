"""Rows of a dataset that the `datasets` library streams, in parts that are read separately."""

from __future__ import annotations

import logging
import math
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from itertools import combinations, islice
from pathlib import Path
from typing import Any

import datasets
import fsspec
from pyarrow import parquet

from data_pipelines.convert.parquet_bounds import check_parquet
from data_pipelines.convert.split_slice import SplitSlice
from data_pipelines.errors import DataError

logger = logging.getLogger(__name__)

_MAX_PARTS = 1024
_STRIPES = 64  # parts of a file of which each takes every 64th row
_SHUFFLE_BUFFER = 1000  # rows


@dataclass(frozen=True)
class StreamedDataset:
    """A dataset that is read row by row, without random access.

    Attributes:
        dataset: Name on the hub, a local folder or a parquet file.
        subset: Configuration of a dataset on the hub that has several.
        seed: Seed of the choice of rows under a limit.
        limit: Number of rows of a split to read; None reads all.
    """

    dataset: str
    subset: str | None
    seed: int
    limit: int | None

    def splits(self) -> list[str]:
        """Return the names of the splits.

        Raises:
            DataError: The dataset cannot be opened.
        """
        return list(_opened(self.dataset, self.subset))

    def source_split(self, split: str) -> str:
        """Return the name of the split that a name such as `train[:80%]` is a slice of.

        Raises:
            DataError: It is no name, or the split does not exist.
        """
        name = SplitSlice.parse(split).split
        self._split(name)
        return name

    def columns(self, split: str) -> dict[str, Any]:
        """Return the columns and their types in the `datasets` library.

        Raises:
            DataError: The split does not exist, or its columns are not declared.
        """
        features = self._split(SplitSlice.parse(split).split).features
        if not features:
            raise DataError(f"{self.dataset}: split {split}: its columns are not declared")
        return dict(features)

    def parts(self, split: str, pictures: Collection[str]) -> list[str]:
        """Return references to parts that together are the split.

        Each file of the source is a part. If rows hold only the names of picture files, iterating
        over all rows is fast, so a file is divided further: each part takes every n-th row.

        Args:
            split: The source's name of the split, or a slice of it such as `train[:80%]`.
            pictures: Columns that hold picture files.

        Raises:
            DataError: The slice has no rows.
        """
        sliced = SplitSlice.parse(split)
        rows = self._split(sliced.split)
        if not sliced.is_whole:
            return self._parts_of_slice(sliced)
        if self.limit is not None:
            return ["0/1/0/1"]
        num_files = min(rows.num_shards, _MAX_PARTS)
        first = next(iter(_undecoded(rows, pictures)), None) or {}
        named = all((first.get(name) or {}).get("bytes") is None for name in pictures)
        stripes = _STRIPES if named and num_files < _STRIPES else 1
        return [
            f"{file}/{num_files}/{stripe}/{stripes}"
            for file in range(num_files)
            for stripe in range(stripes)
        ]

    def rows(
        self, split: str, part: str, pictures: Collection[str]
    ) -> Iterator[tuple[str, dict[str, Any]]]:
        """Yield name and content of the rows of a part; pictures are not decoded.

        Args:
            split: The source's name of the split, or a slice of it.
            part: One of `parts`.
            pictures: Columns that hold picture files.
        """
        file, num_files, stripe, stripes, *bounds = map(int, part.split("/"))
        rows = self._split(SplitSlice.parse(split).split)
        first, stop = bounds or (0, None)
        if self.limit is not None:
            if stop is not None:
                rows, first, stop = rows.skip(first).take(stop - first), 0, None
            rows = rows.shuffle(seed=self.seed, buffer_size=_SHUFFLE_BUFFER).take(self.limit)
        elif num_files > 1:
            rows = rows.shard(num_shards=num_files, index=file)
        chosen = islice(enumerate(_undecoded(rows, pictures)), first + stripe, stop, stripes)
        for number, row in chosen:
            yield f"{file:04d}-{number:07d}", row

    def num_rows(self, split: str) -> int | None:
        """Return the number of rows to read of a split or slice; None where it is not known."""
        sliced = SplitSlice.parse(split)
        if sliced.is_whole:
            info = (self._split(sliced.split).info.splits or {}).get(sliced.split)
            files = _local_parquet(self.dataset, self.subset, sliced.split)
            known = sum(map(_parquet_rows, files)) if files else info and info.num_examples
        else:
            start, stop = self._bounds(sliced)
            known = stop - start
        if known is None or self.limit is None:
            return known
        return min(known, self.limit)

    def overlaps(self, splits: Mapping[str, str]) -> list[tuple[str, str]]:
        """Return the pairs of splits that share rows of the source.

        Args:
            splits: The source's name or slice, by name of a split.
        """
        bounds = {}
        for name, source in splits.items():
            sliced = SplitSlice.parse(source)
            rows = (0, math.inf) if sliced.is_whole else self._bounds(sliced)
            bounds[name] = (sliced.split, *rows)
        return [
            (one, other)
            for one, other in combinations(bounds, 2)
            if bounds[one][0] == bounds[other][0]
            and max(bounds[one][1], bounds[other][1]) < min(bounds[one][2], bounds[other][2])
        ]

    def _parts_of_slice(self, sliced: SplitSlice) -> list[str]:
        start, stop = self._bounds(sliced)
        if start >= stop:
            raise DataError(
                f"{self.dataset}: {sliced}: no rows, split {sliced.split} has "
                f"{sum(_row_counts(self.dataset, self.subset, sliced.split))}"
            )
        if self.limit is not None:
            return [f"0/1/0/1/{start}/{stop}"]
        counts = _row_counts(self.dataset, self.subset, sliced.split)
        parts, offset = [], 0
        for file, count in enumerate(counts):
            first, last = max(start - offset, 0), min(stop - offset, count)
            if first < last:
                parts.append(f"{file}/{len(counts)}/0/1/{first}/{last}")
            offset += count
        return parts

    def _bounds(self, sliced: SplitSlice) -> tuple[int, int]:
        self._split(sliced.split)
        return sliced.bounds(sum(_row_counts(self.dataset, self.subset, sliced.split)))

    def _split(self, name: str) -> Any:  # noqa: ANN401
        splits = _opened(self.dataset, self.subset)
        if name not in splits:
            raise DataError(f"{self.dataset}: no split {name!r}, allowed are {', '.join(splits)}")
        return splits[name]


@lru_cache
def _row_counts(dataset: str, subset: str | None, split: str) -> tuple[int, ...]:
    """Return the number of rows of each file of a split, or of each group of many files.

    The rows are counted from the footers of parquet files; other files are read for it.
    """
    rows = _opened(dataset, subset)[split]
    num_files = min(rows.num_shards, _MAX_PARTS)
    files = _parquet_files(dataset, subset, split)
    if len(files) == num_files:
        return tuple(map(_parquet_rows, files))
    logger.info("%s: the rows of split %s are counted", dataset, split)
    undecoded = _undecoded(rows, [n for n, f in rows.features.items() if is_picture(f)])
    columns = [name for name, feature in rows.features.items() if not is_picture(feature)]
    if columns:
        undecoded = undecoded.select_columns(columns[:1])
    shards = (undecoded.shard(num_shards=num_files, index=number) for number in range(num_files))
    return tuple(sum(1 for _ in shard) for shard in shards)


def _local_parquet(dataset: str, subset: str | None, split: str) -> list[str]:
    files = _parquet_files(dataset, subset, split) if Path(dataset).exists() else []
    return files if all(Path(file).exists() for file in files) else []


def _parquet_files(dataset: str, subset: str | None, split: str) -> list[str]:
    """Return the files of a split in order; nothing where they are not parquet files."""
    if Path(dataset).is_file():
        return [dataset]
    files = datasets.load_dataset_builder(dataset, subset).config.data_files or {}
    names = [str(file) for file in files.get(split, ())]
    return names if all(name.endswith(".parquet") for name in names) else []


def _parquet_rows(file: str) -> int:
    with fsspec.open(file, "rb") as opened:
        return int(parquet.read_metadata(opened).num_rows)


def is_picture(feature: object) -> bool:
    """Return whether a column of the `datasets` library holds pictures."""
    return isinstance(feature, datasets.Image)


@lru_cache(maxsize=1)
def _opened(dataset: str, subset: str | None) -> Any:  # noqa: ANN401
    """Return the splits by name; cached, because listing the files of a dataset is slow."""
    path = Path(dataset)
    if path.exists():
        check_parquet(path)
    try:
        if path.is_file():
            return datasets.load_dataset("parquet", data_files=str(path), streaming=True)
        return datasets.load_dataset(dataset, subset, streaming=True)
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
        raise DataError(f"{dataset}: cannot be opened: {error}") from error


def _undecoded(rows: Any, pictures: Collection[str]) -> Any:  # noqa: ANN401
    for name in pictures:
        rows = rows.cast_column(name, datasets.Image(decode=False))
    return rows
