"""The index of a tar file, built from its headers; a damaged file is an error."""

from __future__ import annotations

import zlib
from array import array
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from data_pipelines.errors import DataError
from data_pipelines.shards.sources import LocalFile

_BLOCK = 512
_MAX_MEMBER = 2**32 - 1
_REGULAR = b"\0" + b"07"
_WITHOUT_DATA = b"123456"  # links, devices, folders, pipes
_LONG_NAME, _PAX, _CHECKSUM_AS_SPACES = b"L", b"x", 8 * ord(" ")


class Member(NamedTuple):
    """One file of a sample: offset and size in bytes and, where it is known, the crc32."""

    suffix: str
    offset: int
    size: int
    crc32: int | None


@dataclass(frozen=True, eq=False)
class TarIndex:
    """The members of every sample as flat arrays: about 16 bytes for each member."""

    keys: bytes  # the keys of all samples, concatenated
    key_ends: np.ndarray  # [num_samples] uint32
    first: np.ndarray  # [num_samples + 1] uint32, number of each sample's first member
    suffixes: tuple[str, ...]  # the distinct suffixes
    kinds: np.ndarray  # [num_members] uint32, position in `suffixes`
    blocks: np.ndarray  # [num_members] uint32, offset in the file in blocks of 512 bytes
    sizes: np.ndarray  # [num_members] uint32, bytes
    crc32: np.ndarray | None  # [num_members] uint32

    @property
    def num_samples(self) -> int:
        """Number of samples in the shard."""
        return len(self.key_ends)

    @property
    def num_bytes(self) -> int:
        """Memory of the index in bytes."""
        arrays = (self.key_ends, self.first, self.kinds, self.blocks, self.sizes, self.crc32)
        return len(self.keys) + sum(a.nbytes for a in arrays if a is not None)

    def key(self, sample: int) -> str:
        """Return the key of a sample."""
        start = self.key_ends[sample - 1] if sample else 0
        return self.keys[start : self.key_ends[sample]].decode()

    def members(self, sample: int) -> list[Member]:
        """Return the members of a sample in the order of the file."""
        part = slice(self.first[sample], self.first[sample + 1])
        kinds, blocks, sizes = (a[part].tolist() for a in (self.kinds, self.blocks, self.sizes))
        crcs = [None] * len(kinds) if self.crc32 is None else self.crc32[part].tolist()
        return [
            Member(self.suffixes[kind], block * _BLOCK, size, crc)
            for kind, block, size, crc in zip(kinds, blocks, sizes, crcs, strict=True)
        ]


def index_tar(file: LocalFile, *, checksums: bool = False) -> TarIndex:
    """Build the index of a tar file (ustar, GNU long names or pax) from its headers.

    Args:
        file: The open file.
        checksums: Also read all members and record their crc32.

    Raises:
        DataError: A header is damaged, a member ends after the end of the file, the
            end-of-archive mark is missing, a key or a member occurs twice, or a name is not
            KEY.SUFFIX.
    """
    path = file.label
    keys: dict[str, None] = {}
    last = None
    suffixes: dict[str, int] = {}
    first, kinds, blocks, sizes, crcs = (array(code) for code in "IIIII")
    for name, offset, size in _regular_members(file):
        key, suffix = _split_name(path, name)
        if key != last:
            if key in keys:
                raise DataError(f"{path}: sample {key!r} comes twice")
            keys[key] = None
            last = key
            first.append(len(kinds))
        kind = suffixes.setdefault(suffix, len(suffixes))
        if kind in kinds[first[-1] :]:
            raise DataError(f"{path}: member {name!r} comes twice")
        if size > _MAX_MEMBER:
            raise DataError(f"{path}: member {name!r} has {size} bytes, allowed are {_MAX_MEMBER}")
        kinds.append(kind)
        blocks.append(offset // _BLOCK)
        sizes.append(size)
        if checksums:
            crcs.append(zlib.crc32(file.read(offset, size)))
    first.append(len(kinds))
    encoded = [key.encode() for key in keys]
    return TarIndex(
        keys=b"".join(encoded),
        key_ends=np.cumsum([len(key) for key in encoded], dtype=np.uint32),
        first=np.array(first, np.uint32),
        suffixes=tuple(suffixes),
        kinds=np.array(kinds, np.uint32),
        blocks=np.array(blocks, np.uint32),
        sizes=np.array(sizes, np.uint32),
        crc32=np.array(crcs, np.uint32) if checksums else None,
    )


def _split_name(path: str, name: str) -> tuple[str, str]:
    folder, slash, base = name.rpartition("/")
    stem, _, suffix = base.partition(".")
    if not stem or not suffix:
        raise DataError(f"{path}: member {name!r} is not named KEY.SUFFIX")
    return folder + slash + stem, suffix


def _regular_members(file: LocalFile) -> Iterator[tuple[str, int, int]]:
    """Yield name, offset and size in bytes of every regular file in the archive."""
    path, end = file.label, file.size
    position, long_name = 0, None
    while True:
        header = _block(file, position)
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
            long_name = _text(path, file.read(data, size).rstrip(b"\0"))
        elif kind == _PAX:
            long_name = _pax_path(path, file.read(data, size))
        elif kind in _WITHOUT_DATA:
            size, long_name = 0, None
        position = data + -(-size // _BLOCK) * _BLOCK
    if position + 2 * _BLOCK > end or _block(file, position + _BLOCK).count(0) != _BLOCK:
        raise DataError(f"{path}: no end-of-archive mark at byte {position}: truncated or damaged")


def _block(file: LocalFile, position: int) -> bytes:
    if position + _BLOCK > file.size:
        raise DataError(
            f"{file.label}: truncated shard: no end-of-archive mark before byte {position}"
        )
    return file.read(position, _BLOCK)


def _checked_size(path: str, header: bytes, position: int) -> int:
    try:
        checksum = int(header[148:156].strip(b"\0 "), 8)
        size = int(header[124:136].strip(b"\0 ") or b"0", 8)
    except ValueError as error:
        raise DataError(f"{path}: damaged header at byte {position}: {error}") from error
    computed = sum(header) - sum(header[148:156]) + _CHECKSUM_AS_SPACES
    if computed != checksum or size < 0:
        raise DataError(
            f"{path}: damaged header at byte {position}: checksum {computed}, recorded {checksum}"
        )
    return size


def _name(path: str, header: bytes) -> str:
    name = header[:100].partition(b"\0")[0]
    prefix = header[345:500].partition(b"\0")[0] if header[257:263] == b"ustar\0" else b""
    return _text(path, prefix + b"/" + name if prefix else name)


def _pax_path(path: str, records: bytes) -> str | None:
    """Return the `path` of pax records `LENGTH KEY=VALUE\\n`; LENGTH counts the whole record."""
    while records:
        length = records.partition(b" ")[0]
        if not length.isdigit() or not len(length) < int(length) <= len(records):
            raise DataError(f"{path}: damaged pax header: record length {length[:20]!r}")
        key, _, value = records[len(length) + 1 : int(length) - 1].partition(b"=")
        if key == b"path":
            return _text(path, value)
        records = records[int(length) :]
    return None


def _text(path: str, name: bytes) -> str:
    try:
        return name.decode()
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: member name {name!r} is not UTF-8") from error
