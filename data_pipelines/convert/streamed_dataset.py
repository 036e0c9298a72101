"""Rows of a dataset that the `datasets` library streams, in parts that are read separately."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from functools import lru_cache
from itertools import islice
from pathlib import Path
from typing import Any

import datasets

from data_pipelines.convert.parquet_bounds import check_parquet
from data_pipelines.errors import DataError

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

    def columns(self, split: str) -> dict[str, Any]:
        """Return the columns and their types in the `datasets` library.

        Raises:
            DataError: The split does not exist, or its columns are not declared.
        """
        features = self._split(split).features
        if not features:
            raise DataError(f"{self.dataset}: split {split}: its columns are not declared")
        return dict(features)

    def parts(self, split: str, pictures: Collection[str]) -> list[str]:
        """Return references to parts that together are the split.

        Each file of the source is a part. If rows hold only the names of picture files, iterating
        over all rows is fast, so a file is divided further: each part takes every n-th row.

        Args:
            split: The source's name of the split.
            pictures: Columns that hold picture files.
        """
        rows = self._split(split)
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
            split: The source's name of the split.
            part: One of `parts`.
            pictures: Columns that hold picture files.
        """
        file, num_files, stripe, stripes = map(int, part.split("/"))
        rows = self._split(split)
        if self.limit is not None:
            rows = rows.shuffle(seed=self.seed, buffer_size=_SHUFFLE_BUFFER).take(self.limit)
        elif num_files > 1:
            rows = rows.shard(num_shards=num_files, index=file)
        chosen = islice(enumerate(_undecoded(rows, pictures)), stripe, None, stripes)
        for number, row in chosen:
            yield f"{file:04d}-{number:07d}", row

    def _split(self, name: str) -> Any:  # noqa: ANN401
        splits = _opened(self.dataset, self.subset)
        if name not in splits:
            raise DataError(f"{self.dataset}: no split {name!r}, allowed are {', '.join(splits)}")
        return splits[name]


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
