"""The keys of samples that are named by paths or URLs."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import PurePosixPath
from urllib.parse import urlsplit

from data_pipelines.convert.table.files import is_url
from dmtg.names import to_file_name


def sample_keys(paths: Iterable[str | None]) -> tuple[str, ...]:
    """Return a key for each row: the path of its image without suffix, unique among the rows.

    `a/b.jpg` becomes `a_b`; a second row of that key has the number of its row at the end.
    """
    taken: set[str] = set()
    keys = []
    for number, path in enumerate(paths):
        key = _key(path or "row")
        if key in taken:
            key = f"{key[-80:]}-{number}"
        while key in taken:
            key += "-"
        taken.add(key)
        keys.append(key)
    return tuple(keys)


def _key(path: str) -> str:
    if is_url(path):  # its query can be a signature
        path = urlsplit(path).path.lstrip("/") or "image"
    name = PurePosixPath(path)
    stem = str(name.with_suffix("")) if name.name else "image"
    return to_file_name(stem).replace(".", "_")
