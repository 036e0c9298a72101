"""Rows whose pictures come from servers: the files of the next rows are fetched meanwhile."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from dataclasses import field as with_default
from typing import Any

from data_pipelines.convert.columns import ColumnReader
from data_pipelines.convert.table.files import TableFiles

_AHEAD = 16  # rows whose files are fetched at a time


@dataclass
class _FetchedFiles:
    """The files of a table; those that were begun to be fetched are waited for."""

    files: TableFiles
    futures: dict[str, Future[bytes]] = with_default(default_factory=dict)

    def read(self, path: str) -> bytes:
        future = self.futures.pop(path, None)
        return self.files.read(path) if future is None else future.result()


def prefetched_rows(
    reader: ColumnReader, rows: Sequence[Mapping[str, Any]]
) -> Iterator[tuple[ColumnReader, Mapping[str, Any]]]:
    """Yield each row with a reader that has its files.

    Args:
        reader: The reader of a table's rows.
        rows: The rows.
    """
    files = reader.files
    assert isinstance(files, TableFiles), "the files of a table"
    if not any(files.is_remote(path) for row in rows[:1] for path in reader.paths(row)):
        yield from ((reader, row) for row in rows)
        return
    fetched = _FetchedFiles(files)
    executor = ThreadPoolExecutor(_AHEAD)
    waiting: deque[Mapping[str, Any]] = deque()
    try:
        for row in rows:
            for path in reader.paths(row):
                if path not in fetched.futures:
                    fetched.futures[path] = executor.submit(files.read, path)
            waiting.append(row)
            if len(waiting) > _AHEAD:
                yield replace(reader, files=fetched), waiting.popleft()
        for row in waiting:
            yield replace(reader, files=fetched), row
    finally:
        executor.shutdown(wait=False, cancel_futures=True)
