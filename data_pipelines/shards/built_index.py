"""The index of a shard without an index file, built once for all processes of a user.

The first process that opens such a shard reads all of it, once: it compares the hash with that in
the manifest and builds the index with the checksum of every member. The index is kept under the
shard's hash in `user_cache_folder("indexes")`. Other workers and ranks of the machine wait for it,
and they and later runs load it, so that a shard is hashed once. From then on every member is
compared with its checksum when it is read, as with an index file: a shard that is replaced later is
detected whatever its size and its times are, so neither has to be remembered.

At most `MAX_KEPT_BYTES` of indexes are kept; the least recently used ones are deleted.

Nothing is written to the folder of the shards, which may be read-only. Where that folder cannot
be written, each process builds the index for itself. `dmtg shards index` writes index files, which
spare both.
"""

from __future__ import annotations

import hashlib
import logging
import os
import time
from contextlib import suppress
from pathlib import Path

from data_pipelines.errors import DamageError, DataError
from data_pipelines.shards.cache import lock_between_processes, make_room, mark_used
from data_pipelines.shards.index_file import pack_index, read_index
from data_pipelines.shards.manifest import MAX_INDEX_BYTES
from data_pipelines.shards.sources import LocalFile
from data_pipelines.shards.tar_index import TarIndex, index_tar
from dmtg.files import atomic_write, user_cache_folder

logger = logging.getLogger(__name__)

_NOT_KEPT = "%s: the index is not kept, each process builds it: %s"
MAX_KEPT_BYTES = 4 * 2**30  # 200 million members; a run with more would build indexes again
_LOCK = ".lock"
_BLOCK_BYTES = 2**20  # read at once
_REPORT_SECONDS = 10.0  # between two messages about a shard that is read
_DIGEST_BYTES = hashlib.sha256().digest_size  # at the start of a kept file: the hash of the rest


def built_index(shard: LocalFile, sha256: str) -> TarIndex:
    """Return the index of a shard, with checksums.

    Args:
        shard: The open shard.
        sha256: Its hash in the manifest.

    Raises:
        DataError: The shard has another hash, or is damaged.
    """
    try:
        folder = user_cache_folder("indexes")
        path = folder / f"{sha256}.index"
        index = _load(path, shard)
        if index is not None:
            return index
        folder.mkdir(parents=True, exist_ok=True)
        if not os.access(folder, os.W_OK):
            raise PermissionError(f"{folder} cannot be written")
        # One lock for many shards: lock files are not deleted, and must not become many.
        with lock_between_processes(folder / f"{sha256[:2]}{_LOCK}"):
            index = _load(path, shard)  # another process may have built it meanwhile
            if index is None:
                index = _build(shard, sha256)
                _keep(path, index)
            return index
    except (OSError, NotImplementedError) as error:  # also a file system without locks
        logger.warning(_NOT_KEPT, shard.label, error)
        return _build(shard, sha256)


def _build(shard: LocalFile, sha256: str) -> TarIndex:
    logger.warning(
        "%s: no index file: all %d bytes are read once; `dmtg shards index` avoids it",
        shard.label,
        shard.size,
    )
    file = _HashedFile(shard)
    index: TarIndex | DataError
    try:
        index = index_tar(file, checksums=True)
    except DataError as error:
        index = error
    digest = file.finish()
    if digest != sha256:
        raise DamageError(
            f"{shard.label}: another or a damaged shard: sha256 {digest}, manifest says {sha256}"
        )
    if isinstance(index, DataError):
        raise index
    return index


class _HashedFile:
    """A shard that is read in ascending order; all bytes are hashed, also those that are skipped.

    Attributes:
        label: Its path or URL, for messages.
        size: Its size in bytes.
    """

    def __init__(self, shard: LocalFile) -> None:
        self.label, self.size = shard.label, shard.size
        self._shard = shard
        self._digest = hashlib.sha256()
        self._block, self._start = b"", 0  # the bytes read last, and where they begin
        self._reported = time.monotonic()

    def read(self, offset: int, size: int) -> bytes:
        """Return exactly `size` bytes.

        Raises:
            DamageError: The file is shorter or cannot be read.
        """
        assert offset >= self._start, "a shard is hashed forwards"
        parts = []
        while size:
            while offset >= self._end:
                self._read_block()
            at = offset - self._start
            parts.append(self._block[at : at + size])
            offset, size = offset + len(parts[-1]), size - len(parts[-1])
        return b"".join(parts)

    def finish(self) -> str:
        """Read the rest of the file; return the hash of all of it."""
        while self._end < self.size:
            self._read_block()
        return self._digest.hexdigest()

    @property
    def _end(self) -> int:
        return self._start + len(self._block)

    def _read_block(self) -> None:
        start = self._end
        size = max(1, min(self.size - start, _BLOCK_BYTES))  # at the end 1, which is an error
        self._block, self._start = self._shard.read(start, size), start
        self._digest.update(self._block)
        now = time.monotonic()
        if now - self._reported > _REPORT_SECONDS:
            self._reported = now
            logger.warning("%s: %d of %d bytes are read", self.label, self._end, self.size)


def _keep(path: Path, index: TarIndex) -> None:
    data = pack_index(index)
    if len(data) > MAX_INDEX_BYTES:
        logger.warning(_NOT_KEPT, path, f"{len(data)} bytes, allowed are {MAX_INDEX_BYTES}")
        return
    try:
        with lock_between_processes(path.with_name(f"room{_LOCK}")):
            make_room(path.parent, _DIGEST_BYTES + len(data), MAX_KEPT_BYTES, kept=(_LOCK,))
        with atomic_write(path, "wb") as file:
            file.write(hashlib.sha256(data).digest() + data)
    except OSError as error:
        logger.warning(_NOT_KEPT, path, error)


def _load(path: Path, shard: LocalFile) -> TarIndex | None:
    """Return a kept index; None if there is none, or a damaged one."""
    try:
        with open(path, "rb") as file:
            data = file.read(_DIGEST_BYTES + MAX_INDEX_BYTES + 1)
        with suppress(OSError):  # a folder that cannot be written
            mark_used(path)
        digest, content = data[:_DIGEST_BYTES], data[_DIGEST_BYTES:]
        return read_index(str(path), content, digest.hex(), shard.size)
    except OSError:
        return None
    except DataError as error:
        logger.warning("%s; it is built again", error)
        return None
