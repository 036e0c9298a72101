"""The members of a tar file, read from its headers: of a shard and of a stream."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

from data_pipelines.decode.bounds import MAX_NAME_BYTES, MAX_TAR_RECORD_BYTES
from data_pipelines.errors import DataError
from dmtg.names import shortened

BLOCK = 512  # bytes of a header; members are padded to a multiple
_REGULAR = b"\0" + b"07"
_WITHOUT_DATA = b"123456"  # links, devices, folders, pipes
_LENGTH_BYTES = 20  # of the length at the start of a pax record, and more
_LONG_NAME, _PAX, _CHECKSUM_AS_SPACES = b"L", b"x", 8 * ord(" ")


class TarSource(Protocol):
    """A tar file."""

    @property
    def label(self) -> str:
        """Its path or URL, for messages."""

    @property
    def size(self) -> int | None:
        """Its size in bytes; None if it is not known, as of a stream."""

    def read(self, offset: int, size: int) -> bytes:
        """Return exactly `size` bytes; raise DataError if the file does not have them."""


def regular_members(file: TarSource) -> Iterator[tuple[str, int, int]]:
    """Yield name, offset and size in bytes of every regular file in the archive.

    ustar, GNU long names and pax are known. Bytes are read in ascending order; those after the
    end-of-archive mark are not read.

    Args:
        file: The tar file; its members may be read between two yields.

    Raises:
        DataError: A header is damaged or too large, a name is too long, a member ends after the
            end of the file, or the end-of-archive mark is missing.
    """
    path = file.label
    position, long_name = 0, None
    while True:
        header = _block(file, position)
        if header.count(0) == BLOCK:
            break
        size = _checked_size(path, header, position)
        kind, data = header[156:157], position + BLOCK
        if file.size is not None and data + size > file.size:
            raise DataError(
                f"{path}: truncated shard: the member at byte {position} ends at {data + size}, "
                f"the file at {file.size}"
            )
        if kind in _REGULAR:
            yield _checked_name(path, long_name or _name(path, header), position), data, size
            long_name = None
        elif kind == _LONG_NAME:
            long_name = _text(path, _record(file, position, size).rstrip(b"\0"))
        elif kind == _PAX:
            long_name = _pax_path(path, _record(file, position, size))
        elif kind in _WITHOUT_DATA:
            size, long_name = 0, None
        position = data + -(-size // BLOCK) * BLOCK
    cut = file.size is not None and position + 2 * BLOCK > file.size
    if cut or _block(file, position + BLOCK).count(0) != BLOCK:
        raise DataError(f"{path}: no end-of-archive mark at byte {position}: truncated or damaged")


def split_name(name: str) -> tuple[str, str] | None:
    """Return key and suffix of a member's name `KEY.SUFFIX`; None if it is not one.

    The suffix begins after the first dot of the last part of the path.
    """
    folder, slash, base = name.rpartition("/")
    stem, _, suffix = base.partition(".")
    return (folder + slash + stem, suffix) if stem and suffix else None


def _block(file: TarSource, position: int) -> bytes:
    if file.size is not None and position + BLOCK > file.size:
        raise DataError(
            f"{file.label}: truncated shard: no end-of-archive mark before byte {position}"
        )
    return file.read(position, BLOCK)


def _record(file: TarSource, position: int, size: int) -> bytes:
    """Return the data of the header at `position`, which describes the member after it."""
    if size > MAX_TAR_RECORD_BYTES:
        raise DataError(
            f"{file.label}: the header at byte {position} has {size} bytes of names and "
            f"attributes, allowed are at most {MAX_TAR_RECORD_BYTES}"
        )
    return file.read(position + BLOCK, size)


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


def _checked_name(path: str, name: str, position: int) -> str:
    length = len(name.encode())
    if length > MAX_NAME_BYTES:
        raise DataError(
            f"{path}: the member at byte {position} has a name of {length} bytes, "
            f"{shortened(repr(name))}; allowed are at most {MAX_NAME_BYTES}"
        )
    return name


def _name(path: str, header: bytes) -> str:
    name = header[:100].partition(b"\0")[0]
    prefix = header[345:500].partition(b"\0")[0] if header[257:263] == b"ustar\0" else b""
    return _text(path, prefix + b"/" + name if prefix else name)


def _pax_path(path: str, records: bytes) -> str | None:
    """Return the `path` of pax records `LENGTH KEY=VALUE\\n`; LENGTH counts the whole record."""
    start = 0
    while start < len(records):
        digits, _, _ = records[start : start + _LENGTH_BYTES].partition(b" ")
        length = int(digits) if digits.isdigit() else 0
        if not len(digits) < length <= len(records) - start:
            raise DataError(f"{path}: damaged pax header: record length {digits!r}")
        key, _, value = records[start + len(digits) + 1 : start + length - 1].partition(b"=")
        if key == b"path":
            return _text(path, value)
        start += length
    return None


def _text(path: str, name: bytes) -> str:
    try:
        return name.decode()
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: member name {shortened(repr(name))} is not UTF-8") from error
