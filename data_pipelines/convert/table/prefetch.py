"""Rows whose pictures come from servers: the files of the next rows are fetched meanwhile."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, replace
from dataclasses import field as with_default
from threading import Thread
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
    if not any(files.is_remote(path) for row in rows for path in reader.paths(row)):
        yield from ((reader, row) for row in rows)
        return
    fetched = _FetchedFiles(files)
    waiting: deque[Mapping[str, Any]] = deque()
    for row in rows:
        for path in reader.paths(row):
            if path not in fetched.futures:
                fetched.futures[path] = _begun(files, path)
        waiting.append(row)
        if len(waiting) > _AHEAD:
            yield replace(reader, files=fetched), waiting.popleft()
    for row in waiting:
        yield replace(reader, files=fetched), row


def _begun(files: TableFiles, path: str) -> Future[bytes]:
    """Begin to fetch a file in a thread that does not keep the process alive."""
    future: Future[bytes] = Future()

    def fetch() -> None:
        try:
            future.set_result(files.read(path))
        except BaseException as error:
            future.set_exception(error)

    Thread(target=fetch, daemon=True).start()
    return future
