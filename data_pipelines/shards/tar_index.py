"""The index of a tar file, built from its headers; a damaged file is an error."""

from __future__ import annotations

import zlib
from array import array
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from data_pipelines.decode.bounds import MAX_SAMPLE_MEMBERS
from data_pipelines.errors import DataError
from data_pipelines.shards.tar_members import BLOCK, TarSource, regular_members, split_name
from dmtg.names import shortened

MAX_STORED_MEMBER = 2**32 - 1  # bytes of a member that is stored but need not be read
_CRC_BYTES = 2**20  # of a member that are read at once


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
            Member(self.suffixes[kind], block * BLOCK, size, crc)
            for kind, block, size, crc in zip(kinds, blocks, sizes, crcs, strict=True)
        ]


def index_tar(file: TarSource, *, checksums: bool = False) -> TarIndex:
    """Build the index of a tar file (ustar, GNU long names or pax) from its headers.

    Args:
        file: The open file, which is read in ascending order.
        checksums: Also read all members and record their crc32.

    Raises:
        DataError: A header is damaged, a member ends after the end of the file, the
            end-of-archive mark is missing, a key or a member occurs twice, a sample has too many
            members, or a name is too long or not KEY.SUFFIX.
    """
    path = file.label
    keys: dict[str, None] = {}
    last = None
    suffixes: dict[str, int] = {}
    in_sample: set[int] = set()
    first, kinds, blocks, sizes, crcs = (array(code) for code in "IIIII")
    for name, offset, size in regular_members(file):
        parts = split_name(name)
        if parts is None:
            raise DataError(f"{path}: member {shortened(repr(name))} is not named KEY.SUFFIX")
        key, suffix = parts
        if key != last:
            if key in keys:
                raise DataError(f"{path}: sample {key!r} comes twice")
            keys[key] = None
            last = key
            first.append(len(kinds))
            in_sample.clear()
        kind = suffixes.setdefault(suffix, len(suffixes))
        check_next_member(path, name, kind in in_sample, len(in_sample))
        in_sample.add(kind)
        if size > MAX_STORED_MEMBER:
            raise DataError(
                f"{path}: member {name!r} has {size} bytes, allowed are {MAX_STORED_MEMBER}"
            )
        kinds.append(kind)
        blocks.append(offset // BLOCK)
        sizes.append(size)
        if checksums:
            crcs.append(_crc32(file, offset, size))
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


def check_next_member(path: str, name: str, is_there: bool, num_members: int) -> None:
    """Check that a sample may have another member.

    Args:
        path: The tar file, for messages.
        name: Name of the member.
        is_there: Whether the sample has a member of that suffix.
        num_members: Number of members that the sample has.

    Raises:
        DataError: The member occurs twice, or is one too many.
    """
    if is_there:
        raise DataError(f"{path}: member {name!r} comes twice")
    if num_members == MAX_SAMPLE_MEMBERS:
        raise DataError(
            f"{path}: member {name!r}: its sample has more than {MAX_SAMPLE_MEMBERS} members"
        )


def _crc32(file: TarSource, offset: int, size: int) -> int:
    crc = 0
    for start in range(0, size, _CRC_BYTES):
        crc = zlib.crc32(file.read(offset + start, min(_CRC_BYTES, size - start)), crc)
    return crc
