"""Access to the files of a dataset in a local folder or behind any fsspec URL."""

from __future__ import annotations

import os
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Protocol

from data_pipelines.errors import DamageError, DataError
from data_pipelines.shards.cache import ShardCache
from data_pipelines.shards.remote import RETRY_SECONDS, Remote, check_size, check_url

COPY_BYTES = 16 * 2**20  # bytes of a remote file in one request


@dataclass(frozen=True)
class StoredFile:
    """A file as recorded in the manifest: name in the folder, size in bytes and hash."""

    name: str
    bytes: int
    sha256: str


class OpenFile(Protocol):
    """A file from which any range of bytes can be read."""

    @property
    def label(self) -> str:
        """Its path or URL, for messages."""

    def read(self, offset: int, size: int) -> bytes:
        """Return exactly `size` bytes; raise DataError if the file does not have them."""

    def discard(self) -> bool:
        """Delete the file if it is a copy; return whether opening it again gives another one."""

    def close(self) -> None:
        """Release the descriptor, if there is one."""


class Folder(Protocol):
    """The files of a dataset, by name. Picklable; a copy works in another process."""

    def where(self, name: str) -> str:
        """Return the path or URL of a file, for messages."""

    def read(self, name: str, limit: int) -> bytes:
        """Return the content of a file; raise DataError if it is missing or over the limit."""

    def open(self, file: StoredFile) -> OpenFile:
        """Open a file of the manifest; raise DataError if it is missing or has another size."""

    def sizes(self) -> Mapping[str, int] | None:
        """Return the size in bytes of every file; None where files cannot be listed."""


Location = Path | str | Folder


def open_folder(
    location: Location, cache: ShardCache | None = None, retry_seconds: float = RETRY_SECONDS
) -> Folder:
    """Return the folder of a path or URL.

    Args:
        location: A path, a URL such as `s3://bucket/shards`, or a folder, which is returned.
        cache: Stores copies of remote files; local files are read directly.
        retry_seconds: How long a failing request to a remote source is retried.

    Raises:
        DataError: The URL's protocol is unknown or refused.
    """
    if isinstance(location, str) and "://" in check_url(location):
        return RemoteFolder(location, cache, retry_seconds)
    return LocalFolder(Path(location)) if isinstance(location, str | Path) else location


class LocalFile:
    """An open local file; every read passes an offset, so processes may share the descriptor."""

    def __init__(self, label: str, descriptor: int) -> None:
        self.label = label
        self.size = os.fstat(descriptor).st_size
        self._descriptor = descriptor

    def read(self, offset: int, size: int) -> bytes:
        """Return exactly `size` bytes.

        Raises:
            DamageError: The file is shorter or cannot be read.
        """
        try:
            data = os.pread(self._descriptor, size, offset)
        except OSError as error:
            raise DamageError(f"{self.label}: cannot be read: {error.strerror}") from error
        if len(data) != size:
            raise DamageError(
                f"{self.label}: truncated shard: {len(data)} of {size} bytes at byte {offset}"
            )
        return data

    def discard(self) -> bool:
        """Return False: the file is no copy."""
        return False

    def close(self) -> None:
        """Close the descriptor."""
        os.close(self._descriptor)


class _CachedFile(LocalFile):
    """A local copy of a remote file."""

    def __init__(self, url: str, cache: ShardCache, path: Path, descriptor: int) -> None:
        super().__init__(f"{url} (copy {path})", descriptor)
        self._cache, self._path = cache, path

    def discard(self) -> bool:
        """Delete the copy, which is damaged; the next `Folder.open` copies the file again."""
        self._cache.discard(self._path, self._descriptor)
        return True


@dataclass(frozen=True)
class LocalFolder:
    """A local folder."""

    root: Path

    def where(self, name: str) -> str:
        """Return the path of a file."""
        return str(self.root / name)

    def read(self, name: str, limit: int) -> bytes:
        """Return the content of a file of at most `limit` bytes.

        Raises:
            DataError: It cannot be read, is no regular file or is larger.
        """
        path = self.where(name)
        try:
            with open(path, "rb", opener=_open_at_once) as file:
                status = os.fstat(file.fileno())
                if not stat.S_ISREG(status.st_mode):
                    raise DataError(f"{path}: not a regular file")
                check_size(path, status.st_size, limit)
                data = file.read(limit + 1)  # /proc has regular files of size 0 with content
        except OSError as error:
            raise DataError(f"{path}: cannot be read ({error.strerror})") from error
        check_size(path, len(data), limit)
        return data

    def open(self, file: StoredFile) -> LocalFile:
        """Open a file of the manifest.

        Raises:
            DataError: It is missing, cannot be opened or has another size.
        """
        path = self.where(file.name)
        try:
            opened = LocalFile(path, _open_at_once(path, os.O_RDONLY))
        except FileNotFoundError as error:
            raise DataError(missing(path)) from error
        except OSError as error:
            raise DataError(f"{path}: cannot be opened: {error.strerror}") from error
        if opened.size != file.bytes:
            opened.close()
            raise DataError(wrong_size(path, opened.size, file.bytes))
        return opened

    def sizes(self) -> dict[str, int]:
        """Return the size in bytes of every file."""
        try:
            with os.scandir(self.root) as entries:
                return {e.name: e.stat().st_size for e in entries if e.is_file()}
        except OSError as error:
            raise DataError(f"{self.root}: cannot be listed ({error.strerror})") from error


@dataclass(frozen=True)
class _RemoteFile:
    remote: Remote
    name: str

    @property
    def label(self) -> str:
        return self.remote.url_of(self.name)

    def read(self, offset: int, size: int) -> bytes:
        return self.remote.read(self.name, offset, size)

    def discard(self) -> bool:
        return False

    def close(self) -> None:
        """Do nothing: no connection stays open between requests."""


class RemoteFolder:
    """A folder behind a URL: ranges of bytes are fetched, or whole files through a cache.

    Args:
        url: The folder's URL.
        cache: Stores whole files; None fetches every range from the source.
        retry_seconds: See `Remote`.
    """

    def __init__(
        self, url: str, cache: ShardCache | None = None, retry_seconds: float = RETRY_SECONDS
    ) -> None:
        self._remote = Remote(url, retry_seconds)
        self._cache = cache

    def where(self, name: str) -> str:
        """Return the URL of a file."""
        return self._remote.url_of(name)

    def read(self, name: str, limit: int) -> bytes:
        """Return the content of a file of at most `limit` bytes, without the cache.

        Raises:
            DataError: The file does not exist, or is larger.
            SourceError: The source does not answer.
        """
        return self._remote.read_small(name, limit)

    def open(self, file: StoredFile) -> OpenFile:
        """Open a file of the manifest, through the cache if there is one.

        Raises:
            DataError: The file is missing or differs from the manifest.
            SourceError: The source does not answer.
        """
        if self._cache is None:
            return _RemoteFile(self._remote, file.name)

        def copy(target: BinaryIO) -> None:
            for start in range(0, file.bytes, COPY_BYTES):
                size = min(COPY_BYTES, file.bytes - start)
                target.write(self._remote.read(file.name, start, size))

        url = self.where(file.name)
        path, descriptor = self._cache.open(url, file.bytes, file.sha256, copy)
        return _CachedFile(url, self._cache, path, descriptor)

    def sizes(self) -> dict[str, int] | None:
        """Return the size in bytes of every file; None where files cannot be listed, as over HTTP.

        Raises:
            DataError: The folder does not exist.
            SourceError: The source does not answer.
        """
        return self._remote.sizes()


def _open_at_once(path: str, flags: int) -> int:
    """Open a file without waiting for the other end of a pipe."""
    return os.open(path, flags | os.O_NONBLOCK)


def missing(where: str) -> str:
    """Return the message for a file that does not exist."""
    return f"{where}: missing {_noun(where)}"


def wrong_size(where: str, size: int, recorded: int) -> str:
    """Return the message for a file whose size differs from the manifest's."""
    word = "truncated" if size < recorded else "wrong"
    return f"{where}: {word} {_noun(where)}: {size} bytes, manifest says {recorded}"


def _noun(where: str) -> str:
    return "index" if where.endswith(".index") else "shard"
