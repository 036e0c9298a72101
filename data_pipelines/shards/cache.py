"""Copies of remote files on a local disk, shared by all processes of a machine."""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

from filelock import FileLock, Timeout

from data_pipelines.errors import DataError

_COPY, _PARTIAL, _LOCK = ".copy", ".partial", ".lock"
_PAUSE = 0.1  # seconds between attempts to reserve space that other processes hold
_POLL = 0.01  # seconds between attempts to acquire a lock


class ShardCache:
    """A folder that holds at most `max_bytes` of files and evicts the least recently used ones.

    A file's name is derived from its whole URL and its hash: equal file names of different URLs,
    and a dataset that was replaced under its URL, get different copies. A file that is evicted
    while another process reads it stays readable there.

    An unfinished copy has a name that all processes know, with a lock beside it: other processes
    wait for it, count its size, and delete it when its process was killed. `dmtg.files` writes
    under names that no other process knows, so it is not used here.

    Args:
        folder: The folder, created if absent.
        max_bytes: Upper limit of the sum of all file sizes.
    """

    def __init__(self, folder: Path, max_bytes: int) -> None:
        self.folder = folder
        self.max_bytes = max_bytes
        folder.mkdir(parents=True, exist_ok=True)

    def open(
        self, url: str, size: int, sha256: str, copy: Callable[[BinaryIO], None]
    ) -> tuple[Path, int]:
        """Return the path and a descriptor of the local copy, which is made if it is absent.

        Args:
            url: Source of the file.
            size: Its size in bytes.
            sha256: Its hash.
            copy: Writes the file's content.

        Raises:
            DataError: The copied content has another hash, or `size` exceeds `max_bytes`.
        """
        if size > self.max_bytes:
            raise DataError(
                f"data.cache_gb: {url} has {size} bytes, the cache holds at most {self.max_bytes}"
            )
        name = hashlib.sha256(f"{url} {sha256}".encode()).hexdigest()
        path = self.folder / f"{name}{_COPY}"
        descriptor = _reuse(path, size)
        if descriptor is None:
            with lock_between_processes(path.with_suffix(_LOCK)):
                descriptor = _reuse(path, size)  # another process may have made it meanwhile
                if descriptor is None:
                    descriptor = self._make(path, url, size, sha256, copy)
        return path, descriptor

    def discard(self, path: Path, descriptor: int) -> None:
        """Delete a damaged copy, unless another process has replaced it.

        Args:
            path: The copy.
            descriptor: The descriptor that it was read from.
        """
        with self._room_lock(), suppress(FileNotFoundError):
            if os.path.samestat(os.stat(path), os.fstat(descriptor)):
                path.unlink()

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
                digest = _digest(file)
                if digest != sha256:
                    raise DataError(f"{url}: sha256 {digest} came, manifest says {sha256}")
                with self._room_lock():  # a rename during the count would hide the file from it
                    os.replace(partial, path)
            except BaseException:
                partial.unlink(missing_ok=True)
                raise
            return os.dup(file.fileno())

    def _reserve(self, file: BinaryIO, size: int) -> None:
        """Make room for the file and reserve it by giving the empty file its final size."""
        while True:
            with self._room_lock():
                if self._make_room(size):
                    file.truncate(size)
                    return
            time.sleep(_PAUSE)  # unfinished copies of other processes take up the rest

    def _room_lock(self) -> FileLock:
        """Return the lock under which files are counted, deleted and renamed."""
        return lock_between_processes(self.folder / f"room{_LOCK}")

    def _make_room(self, size: int) -> bool:
        """Delete the least recently used copies; return whether `size` bytes fit."""
        for entry in os.scandir(self.folder):
            if entry.name.endswith(_PARTIAL):
                _delete_abandoned(Path(entry.path))
        return make_room(self.folder, size, self.max_bytes, kept=(_PARTIAL, _LOCK))


def make_room(folder: Path, size: int, max_bytes: int, kept: tuple[str, ...]) -> bool:
    """Delete the least recently used files of a folder; return whether `size` bytes fit.

    Args:
        folder: The folder.
        size: Bytes to be added.
        max_bytes: Upper limit of the sum of all file sizes.
        kept: Ends of the names of files that are counted, but not deleted.
    """
    files, total = [], size
    for entry in os.scandir(folder):
        try:
            status = entry.stat()
        except FileNotFoundError:  # an unfinished file that failed
            continue
        total += status.st_size
        if not entry.name.endswith(kept):
            files.append((status.st_mtime_ns, status.st_size, entry.path))
    files.sort(reverse=True)
    while files and total > max_bytes:
        _, freed, oldest = files.pop()
        os.unlink(oldest)
        total -= freed
    return total <= max_bytes


def mark_used(file: Path | int) -> None:
    """Set the time of use of a file or descriptor, by which `make_room` chooses.

    The clock of the file system, which `os.utime` takes by default, has steps of milliseconds.
    """
    now = time.time_ns()
    os.utime(file, ns=(now, now))


def _reuse(path: Path, size: int) -> int | None:
    """Return a descriptor of a complete copy and update its time of use; None without a copy."""
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except FileNotFoundError:
        return None
    if os.fstat(descriptor).st_size != size:  # truncated by somebody else: copy it again
        os.close(descriptor)
        return None
    mark_used(descriptor)
    return descriptor


def _delete_abandoned(partial: Path) -> bool:
    """Delete an unfinished copy if its process was killed; return whether it was."""
    try:
        with lock_between_processes(partial.with_suffix(_LOCK)).acquire(timeout=0):
            partial.unlink(missing_ok=True)
            return True
    except Timeout:
        return False


def _digest(file: BinaryIO) -> str:
    digest = hashlib.sha256()
    while block := file.read(2**20):
        digest.update(block)
    return digest.hexdigest()


def lock_between_processes(path: Path) -> FileLock:
    """Return a lock between processes; the system releases it when its process is killed.

    Without `flock` on the file system an error is raised: a lock by the existence of a file, the
    default replacement, would survive its process.
    """
    return FileLock(path, poll_interval=_POLL, fallback_to_soft=False)
