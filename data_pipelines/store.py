"""Reads the members of a sample, by global id, straight from the shards."""

from __future__ import annotations

import os
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Collection, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any

from data_pipelines.errors import DataError
from data_pipelines.manifest import Shard
from data_pipelines.tar_index import TarIndex, index_tar

MAX_OPEN_SHARDS = 64


class ShardStore:
    """Random access to the samples of a split; ids count through the shards in manifest order.

    A shard is opened, compared with the manifest and indexed when a sample of it is first read;
    the shards read last stay open. Reads carry their own offset, so a forked process may share
    the descriptors; a pickled copy starts with none.

    Args:
        root: Folder of the shards.
        shards: Shards of the split.
    """

    def __init__(self, root: Path, shards: Sequence[Shard]) -> None:
        self.root = root
        self.shards = tuple(shards)
        self._ends = list(accumulate(shard.samples for shard in self.shards))
        self._open: OrderedDict[int, tuple[int, TarIndex]] = OrderedDict()

    def __len__(self) -> int:
        return self._ends[-1]

    def read(self, sample_id: int, members: Collection[str]) -> tuple[str, dict[str, bytes]]:
        """Key and bytes of the members asked for; a member that the sample lacks is left out.

        Args:
            sample_id: Number of the sample in the split.
            members: Suffixes, such as `rgb.png`.

        Raises:
            DataError: The shard is missing, damaged or not the manifest's.
            IndexError: There is no such sample.
        """
        if not 0 <= sample_id < len(self):
            raise IndexError(f"sample_id: {sample_id} must be from 0 to {len(self) - 1}")
        number = bisect_right(self._ends, sample_id)
        descriptor, index = self._shard(number)
        sample = sample_id - (self._ends[number] - self.shards[number].samples)
        key, found = index.keys[sample], {}
        for suffix, offset, size in index.members(sample):
            if suffix in members:
                data = os.pread(descriptor, size, offset)
                if len(data) != size:
                    raise DataError(
                        f"{self.root / self.shards[number].name}: truncated shard: member "
                        f"{key}.{suffix} has {len(data)} of {size} bytes"
                    )
                found[suffix] = data
        return key, found

    def path(self, sample_id: int) -> Path:
        """The shard that holds a sample, for messages."""
        return self.root / self.shards[bisect_right(self._ends, sample_id)].name

    def close(self) -> None:
        """Closes all shards; a later read opens them again."""
        while self._open:
            os.close(self._open.popitem()[1][0])

    def __del__(self) -> None:
        self.close()

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_open": OrderedDict()}

    def _shard(self, number: int) -> tuple[int, TarIndex]:
        if number in self._open:
            self._open.move_to_end(number)
            return self._open[number]
        while len(self._open) >= MAX_OPEN_SHARDS:
            os.close(self._open.popitem(last=False)[1][0])
        shard = self.shards[number]
        path = self.root / shard.name
        try:
            descriptor = os.open(path, os.O_RDONLY)
        except FileNotFoundError as error:
            raise DataError(f"{path}: missing shard") from error
        try:
            opened = descriptor, _checked_index(path, descriptor, shard)
        except BaseException:
            os.close(descriptor)
            raise
        self._open[number] = opened
        return opened


def _checked_index(path: Path, descriptor: int, shard: Shard) -> TarIndex:
    size = os.fstat(descriptor).st_size
    if size != shard.bytes:
        word = "truncated" if size < shard.bytes else "wrong"
        raise DataError(f"{path}: {word} shard: {size} bytes, manifest says {shard.bytes}")
    index = index_tar(path, descriptor)
    if len(index.keys) != shard.samples:
        raise DataError(f"{path}: {len(index.keys)} samples, manifest says {shard.samples}")
    return index
