"""Copies of remote files on a local disk, shared by all processes of a machine."""

from __future__ import annotations

import fcntl
import hashlib
import os
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import BinaryIO

from data_pipelines.errors import DataError

_COPY, _PARTIAL, _LOCK = ".copy", ".partial", ".lock"
_PAUSE = 0.1  # seconds between looks for room that other processes take up


class ShardCache:
    """A folder that holds at most `max_bytes` of files; those not used for longest give way.

    A file's name comes from its whole URL and its hash, so neither equal file names nor a data
    set that was replaced under its URL are ever mixed up. A file that gives way while another
    process reads it stays readable there.

    Args:
        folder: The folder, made if absent.
        max_bytes: Most bytes of all files together.
    """

    def __init__(self, folder: Path, max_bytes: int) -> None:
        self.folder = folder
        self.max_bytes = max_bytes
        folder.mkdir(parents=True, exist_ok=True)

    def open(
        self, url: str, size: int, sha256: str, copy: Callable[[BinaryIO], None]
    ) -> tuple[Path, int]:
        """A descriptor of the local copy, which is made first if need be.

        Args:
            url: Where the file comes from.
            size: Its size in bytes.
            sha256: Its hash.
            copy: Writes the file's content.

        Raises:
            DataError: What was copied is not the file that is meant, or has no room at all.
        """
        if size > self.max_bytes:
            raise DataError(
                f"data.cache_gb: {url} has {size} bytes, the cache holds at most {self.max_bytes}"
            )
        name = hashlib.sha256(f"{url} {sha256}".encode()).hexdigest()
        path = self.folder / f"{name}{_COPY}"
        descriptor = _reuse(path, size)
        if descriptor is None:
            with _locked(path.with_suffix(_LOCK)):
                descriptor = _reuse(path, size)  # another process may have been first
                if descriptor is None:
                    descriptor = self._make(path, url, size, sha256, copy)
        return path, descriptor

    def _make(
        self, path: Path, url: str, size: int, sha256: str, copy: Callable[[BinaryIO], None]
    ) -> int:
        partial = path.with_suffix(_PARTIAL)
        with open(partial, "w+b") as file:
            try:
                self._reserve(file, size)
                copy(file)
                file.flush()
                file.seek(0)
                found = _digest(file)
                if found != sha256:
                    raise DataError(f"{url}: sha256 {found} came, manifest says {sha256}")
                with self._counting():  # a name that changes meanwhile would not be counted
                    os.replace(partial, path)
            except BaseException:
                partial.unlink(missing_ok=True)
                raise
            return os.dup(file.fileno())

    def _reserve(self, file: BinaryIO, size: int) -> None:
        """Makes room and takes it, by giving the empty file its final size."""
        while True:
            with self._counting():
                if self._make_room(size):
                    file.truncate(size)
                    return
            time.sleep(_PAUSE)  # other processes' unfinished copies take up the rest

    def _counting(self) -> AbstractContextManager[None]:
        """Holds the lock under which files are counted, deleted and given their final names."""
        return _locked(self.folder / f"room{_LOCK}")

    def _make_room(self, size: int) -> bool:
        """Whether there is room, after old copies were deleted."""
        copies, total = [], size
        for entry in os.scandir(self.folder):
            if entry.name.endswith(_PARTIAL) and _abandoned(Path(entry.path)):
                continue
            try:
                status = entry.stat()
            except FileNotFoundError:  # an unfinished copy that failed
                continue
            total += status.st_size
            if entry.name.endswith(_COPY):
                copies.append((status.st_mtime_ns, status.st_size, entry.path))
        copies.sort(reverse=True)
        while copies and total > self.max_bytes:
            _, freed, oldest = copies.pop()
            os.unlink(oldest)
            total -= freed
        return total <= self.max_bytes


def _reuse(path: Path, size: int) -> int | None:
    """A descriptor of a finished copy, which counts as used from now on; None without one."""
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except FileNotFoundError:
        return None
    if os.fstat(descriptor).st_size != size:  # damaged from outside: copy it anew
        os.close(descriptor)
        return None
    os.utime(descriptor)
    return descriptor


def _abandoned(partial: Path) -> bool:
    """Whether an unfinished copy's process is gone; if so it is deleted."""
    with open(partial.with_suffix(_LOCK), "ab") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        partial.unlink(missing_ok=True)
        return True


def _digest(file: BinaryIO) -> str:
    digest = hashlib.sha256()
    while block := file.read(2**20):
        digest.update(block)
    return digest.hexdigest()


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Holds a lock between processes, which ends with the process at the latest."""
    with open(path, "ab") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
