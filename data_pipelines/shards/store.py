"""Random access to the members of a sample by global id."""

from __future__ import annotations

import zlib
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Collection, Iterator, Sequence
from itertools import accumulate
from typing import Any

from data_pipelines.decode.bounds import check_member_size, check_sample_size
from data_pipelines.errors import DamageError, DataError
from data_pipelines.shards.built_index import built_index
from data_pipelines.shards.index_file import read_index
from data_pipelines.shards.manifest import Shard, index_name
from data_pipelines.shards.sources import LocalFile, Location, OpenFile, StoredFile, open_folder
from data_pipelines.shards.tar_index import Member, TarIndex

MAX_OPEN_SHARDS = 64
# Of the indexes in memory, which are more than the open shards: the streams of an epoch use more
# shards at a time than stay open.
MAX_MEMORY_OF_INDEXES = 48 * 2**20
_JOINED_GAP = 2**16  # bytes; members with a smaller gap between them are read together


class ShardStore:
    """Random access to the samples of a split; ids are numbered over the shards of the manifest.

    A shard is opened, compared with the manifest and indexed when a sample of it is first read.
    The most recently used shards stay open, and the most recently used indexes stay in memory.
    Every read passes an offset, so a forked process may share the descriptors; a pickled copy has
    none.

    Each member is compared with its checksum in the index. A local copy of a remote file that is
    damaged is made again, once.

    Args:
        location: Folder of the shards: a path, a URL, or the result of `open_folder`.
        shards: Shards of the split.
    """

    def __init__(self, location: Location, shards: Sequence[Shard]) -> None:
        self.folder = open_folder(location)
        self.shards = tuple(shards)
        self._ends = list(accumulate(shard.samples for shard in self.shards))
        self._open: OrderedDict[int, OpenFile] = OrderedDict()
        self._indexes: OrderedDict[int, TarIndex] = OrderedDict()
        self._index_bytes = 0
        self._discarded: set[int] = set()  # numbers of the shards that were copied again

    def __len__(self) -> int:
        return self._ends[-1]

    def read(self, sample_id: int, members: Collection[str]) -> tuple[str, dict[str, bytes]]:
        """Return the key and the bytes of the requested members that the sample has.

        In a mix the key is `SOURCE/KEY`: keys of different sources can be equal.

        Args:
            sample_id: Number of the sample in the split.
            members: Suffixes, such as `rgb.png`.

        Raises:
            DataError: The shard is missing, damaged or differs from the manifest.
            IndexError: The sample does not exist.
        """
        if not 0 <= sample_id < len(self):
            raise IndexError(f"sample_id: {sample_id} must be from 0 to {len(self) - 1}")
        number = bisect_right(self._ends, sample_id)
        sample = sample_id - (self._ends[number] - self.shards[number].samples)
        try:
            return self._read(number, sample, members)
        except DamageError:
            if not self._discard_copy(number):
                raise
        return self._read(number, sample, members)

    def _read(
        self, number: int, sample: int, members: Collection[str]
    ) -> tuple[str, dict[str, bytes]]:
        """Return key and members of a sample of a shard, see `read`."""
        file, index = self._file(number), self._index(number)
        key = index.key(sample)
        wanted = [member for member in index.members(sample) if member.suffix in members]
        try:
            for member in wanted:
                check_member_size(member.suffix, member.size)
            check_sample_size(sum(member.size for member in wanted))
        except DataError as error:
            raise DataError(f"{file.label}: sample {key}: {error}") from error
        contents = {}
        for member, data in _contents(file, wanted):
            if member.crc32 is not None and zlib.crc32(data) != member.crc32:
                raise DamageError(
                    f"{file.label}: member {key}.{member.suffix}: damaged: crc32 "
                    f"{zlib.crc32(data):08x}, recorded {member.crc32:08x}"
                )
            contents[member.suffix] = data
        source = self.shards[number].source
        return (key if source is None else f"{source}/{key}"), contents

    def _discard_copy(self, number: int) -> bool:
        """Delete the local copy of a damaged shard, once; return whether to read it again."""
        if number in self._discarded or number not in self._open:
            return False
        if not self._open[number].discard():
            return False
        self._discarded.add(number)
        self._open.pop(number).close()
        index = self._indexes.pop(number, None)
        self._index_bytes -= index.num_bytes if index else 0
        return True

    def shard(self, sample_id: int) -> Shard:
        """Return the shard that holds a sample."""
        return self.shards[bisect_right(self._ends, sample_id)]

    def where(self, sample_id: int) -> str:
        """Return the path or URL of the shard that holds a sample, for messages."""
        return self.folder.where(self.shard(sample_id).name)

    def close(self) -> None:
        """Close all shards; a later read opens them again."""
        while self._open:
            self._open.popitem()[1].close()

    def __del__(self) -> None:
        if hasattr(self, "_open"):  # absent if __init__ raised
            self.close()

    def __getstate__(self) -> dict[str, Any]:
        empty = {"_open": OrderedDict(), "_indexes": OrderedDict(), "_index_bytes": 0}
        return {**self.__dict__, **empty}

    def _file(self, number: int) -> OpenFile:
        if number in self._open:
            self._open.move_to_end(number)
            return self._open[number]
        while len(self._open) >= MAX_OPEN_SHARDS:
            self._open.popitem(last=False)[1].close()
        shard = self.shards[number]
        opened = self.folder.open(StoredFile(shard.name, shard.bytes, shard.sha256))
        self._open[number] = opened
        return opened

    def _index(self, number: int) -> TarIndex:
        if number in self._indexes:
            self._indexes.move_to_end(number)
            return self._indexes[number]
        shard = self.shards[number]
        index = self._read_index(shard, self._open[number])
        if index.num_samples != shard.samples:
            raise DataError(
                f"{self.folder.where(shard.name)}: {index.num_samples} samples, manifest says "
                f"{shard.samples}"
            )
        self._indexes[number] = index
        self._index_bytes += index.num_bytes
        while self._index_bytes > MAX_MEMORY_OF_INDEXES and len(self._indexes) > 1:
            self._index_bytes -= self._indexes.popitem(last=False)[1].num_bytes
        return index

    def _read_index(self, shard: Shard, opened: OpenFile) -> TarIndex:
        if shard.index is not None:
            name = index_name(shard.name)
            stored = StoredFile(name, shard.index.bytes, shard.index.sha256)
            return self._stored_index(shard, stored, again=True)
        if not isinstance(opened, LocalFile):
            raise DataError(
                f"{self.folder.where(shard.name)}: the shard has no index; set data.cache_dir to "
                "read it through a local copy"
            )
        return built_index(opened, shard.sha256)

    def _stored_index(self, shard: Shard, stored: StoredFile, *, again: bool) -> TarIndex:
        """Return the index in an index file; a damaged local copy of the file is made again."""
        file = self.folder.open(stored)
        try:
            data = file.read(0, stored.bytes)
            return read_index(file.label, data, stored.sha256, shard.bytes)
        except DamageError:
            if not again or not file.discard():
                raise
        finally:
            file.close()
        return self._stored_index(shard, stored, again=False)


def _contents(file: OpenFile, members: Sequence[Member]) -> Iterator[tuple[Member, bytes]]:
    """Yield each member with its bytes; members with small gaps between them are read at once."""
    groups: list[list[Member]] = []
    for member in members:
        if groups:
            last = groups[-1][-1]
            if 0 <= member.offset - (last.offset + last.size) <= _JOINED_GAP:
                groups[-1].append(member)
                continue
        groups.append([member])
    for group in groups:
        start = group[0].offset
        data = file.read(start, group[-1].offset + group[-1].size - start)
        for member in group:
            at = member.offset - start
            yield member, data[at : at + member.size]
