"""Finds the members of a tar file by walking its headers, and refuses a damaged one."""

from __future__ import annotations

import os
from array import array
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from sys import intern

from data_pipelines.errors import DataError

_BLOCK = 512
_REGULAR = b"\0" + b"07"
_WITHOUT_DATA = b"123456"  # links, devices, folders, pipes
_LONG_NAME, _PAX, _CHECKSUM_AS_SPACES = b"L", b"x", 8 * ord(" ")


@dataclass(frozen=True)
class TarIndex:
    """Where each sample's members lie, as flat arrays: some 20 bytes a member."""

    keys: list[str]
    first: array[int]  # [num_samples + 1] number of each sample's first member
    suffixes: list[str]  # [num_members]
    offsets: array[int]  # [num_members] bytes from the start of the file
    sizes: array[int]  # [num_members] bytes

    def members(self, sample: int) -> Iterator[tuple[str, int, int]]:
        """Suffix, offset and size in bytes of each member of a sample."""
        for member in range(self.first[sample], self.first[sample + 1]):
            yield self.suffixes[member], self.offsets[member], self.sizes[member]


def index_tar(path: Path, descriptor: int) -> TarIndex:
    """Walks an open tar file (ustar, GNU long names or pax).

    Raises:
        DataError: A header is damaged, a member reaches past the end, the end-of-archive mark is
            missing, a key or a member comes twice, or a name is not KEY.SUFFIX.
    """
    index = TarIndex([], array("q"), [], array("q"), array("q"))
    for name, offset, size in _regular_members(path, descriptor):
        folder, slash, base = name.rpartition("/")
        stem, _, suffix = base.partition(".")
        if not stem or not suffix:
            raise DataError(f"{path}: member {name!r} is not named KEY.SUFFIX")
        key = folder + slash + stem
        if not index.keys or index.keys[-1] != key:
            index.keys.append(key)
            index.first.append(len(index.offsets))
        elif suffix in index.suffixes[index.first[-1] :]:
            raise DataError(f"{path}: member {name!r} comes twice")
        index.suffixes.append(intern(suffix))
        index.offsets.append(offset)
        index.sizes.append(size)
    index.first.append(len(index.offsets))
    if len(set(index.keys)) < len(index.keys):
        twice = next(key for key in index.keys if index.keys.count(key) > 1)
        raise DataError(f"{path}: sample {twice!r} comes twice")
    return index


def _regular_members(path: Path, descriptor: int) -> Iterator[tuple[str, int, int]]:
    """Name, offset and size in bytes of every regular file in the archive."""
    end = os.fstat(descriptor).st_size
    position, long_name = 0, None
    while True:
        header = os.pread(descriptor, _BLOCK, position)
        if header.count(0) == _BLOCK:
            break
        size = _checked_size(path, header, position)
        kind, data = header[156:157], position + _BLOCK
        if data + size > end:
            raise DataError(
                f"{path}: truncated shard: the member at byte {position} ends at {data + size}, "
                f"the file at {end}"
            )
        if kind in _REGULAR:
            yield long_name or _name(path, header), data, size
            long_name = None
        elif kind == _LONG_NAME:
            long_name = _text(path, os.pread(descriptor, size, data).rstrip(b"\0"))
        elif kind == _PAX:
            long_name = _pax_path(path, os.pread(descriptor, size, data))
        elif kind in _WITHOUT_DATA:
            size, long_name = 0, None
        position = data + -(-size // _BLOCK) * _BLOCK
    if os.pread(descriptor, _BLOCK, position + _BLOCK).count(0) != _BLOCK:
        raise DataError(f"{path}: no end-of-archive mark at byte {position}: truncated or damaged")


def _checked_size(path: Path, header: bytes, position: int) -> int:
    if len(header) < _BLOCK:
        raise DataError(f"{path}: truncated shard: no end-of-archive mark before byte {position}")
    try:
        checksum = int(header[148:156].strip(b"\0 "), 8)
        size = int(header[124:136].strip(b"\0 ") or b"0", 8)
    except ValueError as error:
        raise DataError(f"{path}: damaged header at byte {position}: {error}") from error
    found = sum(header) - sum(header[148:156]) + _CHECKSUM_AS_SPACES
    if found != checksum or size < 0:
        raise DataError(
            f"{path}: damaged header at byte {position}: checksum {found}, recorded {checksum}"
        )
    return size


def _name(path: Path, header: bytes) -> str:
    name = header[:100].partition(b"\0")[0]
    prefix = header[345:500].partition(b"\0")[0] if header[257:263] == b"ustar\0" else b""
    return _text(path, prefix + b"/" + name if prefix else name)


def _pax_path(path: Path, records: bytes) -> str | None:
    """The `path` among pax records `LENGTH KEY=VALUE\\n`, where LENGTH counts the whole record."""
    while records:
        length = records.partition(b" ")[0]
        if not length.isdigit() or not len(length) < int(length) <= len(records):
            raise DataError(f"{path}: damaged pax header: record length {length[:20]!r}")
        key, _, value = records[len(length) + 1 : int(length) - 1].partition(b"=")
        if key == b"path":
            return _text(path, value)
        records = records[int(length) :]
    return None


def _text(path: Path, name: bytes) -> str:
    try:
        return name.decode()
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: member name {name!r} is not UTF-8") from error
