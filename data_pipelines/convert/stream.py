"""Rows of a data set that the `datasets` library streams, in parts that can be read apart."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from functools import lru_cache
from itertools import islice
from pathlib import Path
from typing import Any

import datasets

from data_pipelines.errors import DataError

_MAX_PARTS = 1024
_STRIPES = 64
_SHUFFLE_BUFFER = 1000  # rows


@dataclass(frozen=True)
class Stream:
    """A data set to stream.

    Attributes:
        dataset: Name on the hub, a local folder or a parquet file.
        subset: Its configuration, where it has several.
        seed: Of the rows that a limit takes.
        limit: Rows of a split to read; None reads all.
    """

    dataset: str
    subset: str | None
    seed: int
    limit: int | None

    def splits(self) -> list[str]:
        """Names of the splits.

        Raises:
            DataError: The data set cannot be opened.
        """
        return list(_opened(self.dataset, self.subset))

    def columns(self, split: str) -> dict[str, Any]:
        """The columns and their features, in the library's types.

        Raises:
            DataError: There is no such split, or its columns are not declared.
        """
        features = self._split(split).features
        if not features:
            raise DataError(f"{self.dataset}: split {split}: its columns are not declared")
        return dict(features)

    def parts(self, split: str, pictures: Collection[str]) -> list[str]:
        """References to parts that together are the split.

        A file of the source is a part. Where a row only names its picture files, going through
        all rows is quick, and each of many parts takes every n-th row.

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
        """Name and content of the rows of a part; pictures stay undecoded.

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
        found = _opened(self.dataset, self.subset)
        if name not in found:
            raise DataError(f"{self.dataset}: no split {name!r}, allowed are {', '.join(found)}")
        return found[name]


@lru_cache(maxsize=1)
def _opened(dataset: str, subset: str | None) -> Any:  # noqa: ANN401
    """The splits by name; listing a data set's files anew for every part would take long."""
    path = Path(dataset)
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
