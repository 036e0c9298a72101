"""The index file of a shard: offset, size and checksum of every member."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load, save

from data_pipelines.decode.bounds import MAX_NAME_BYTES, MAX_SAMPLE_MEMBERS
from data_pipelines.errors import DamageError, DataError
from data_pipelines.shards.manifest import MAX_INDEX_BYTES, IndexFile, index_name
from data_pipelines.shards.sources import LocalFile
from data_pipelines.shards.tar_index import TarIndex, index_tar
from data_pipelines.shards.tar_members import BLOCK
from dmtg.files import atomic_write

_DTYPES = {
    "keys": np.uint8,
    "key_ends": np.uint32,
    "first": np.uint32,
    "suffixes": np.uint8,
    "kinds": np.uint32,
    "blocks": np.uint32,
    "sizes": np.uint32,
    "crc32": np.uint32,
}
_SEPARATOR = "/"  # cannot occur in a suffix, which begins after the last slash of a name


def write_index(shard: Path, content: Path | None = None) -> tuple[int, IndexFile]:
    """Read a shard once and write its index beside it.

    Args:
        shard: The tar file.
        content: The temporary path of the tar file, if it is not yet at `shard`.

    Returns:
        The shard's number of samples, and the manifest's entry for the index.

    Raises:
        DataError: The shard cannot be read or is damaged.
    """
    with open(content or shard, "rb") as tar:
        index = index_tar(LocalFile(str(shard), tar.fileno()), checksums=True)
    data = pack_index(index)
    if len(data) > MAX_INDEX_BYTES:
        raise DataError(
            f"{shard}: its index has {len(data)} bytes, allowed are at most {MAX_INDEX_BYTES}: "
            "write smaller shards"
        )
    with atomic_write(shard.with_name(index_name(shard.name)), "wb") as file:
        file.write(data)
    return index.num_samples, IndexFile(bytes=len(data), sha256=hashlib.sha256(data).hexdigest())


def read_index(where: str, data: bytes, sha256: str, shard_bytes: int) -> TarIndex:
    """Return the index that the bytes of an index file hold.

    Args:
        where: Path or URL of the file, for messages.
        data: Its bytes.
        sha256: Their recorded hash.
        shard_bytes: Size of the shard.

    Raises:
        DamageError: The hash differs from the recorded one.
        DataError: The bytes are not an index, or it is not the index of a tar file of that size.
            A small index of overlapping members could make a reader read one range many times.
    """
    digest = hashlib.sha256(data).hexdigest()
    if digest != sha256:
        raise DamageError(f"{where}: damaged index: sha256 {digest}, recorded {sha256}")
    try:
        arrays = load(data)
    except (SafetensorError, KeyError, TypeError, ValueError) as error:
        raise DataError(f"{where}: damaged index: {error}") from error
    if {name: array.dtype for name, array in arrays.items()} != _DTYPES:
        raise DataError(f"{where}: holds {sorted(arrays)}; an index has {sorted(_DTYPES)}")
    raw = {name: arrays.pop(name).tobytes() for name in ("keys", "suffixes")}
    try:
        suffixes = tuple(raw["suffixes"].decode().split(_SEPARATOR))
        index = TarIndex(keys=raw["keys"], suffixes=suffixes, **arrays)
        index.keys.decode()
    except UnicodeDecodeError as error:
        raise DataError(f"{where}: damaged index: {error}") from error
    if not _consistent(index):
        raise DataError(f"{where}: damaged index: its arrays do not fit each other")
    if not _fits_a_tar(index, shard_bytes):
        raise DataError(
            f"{where}: damaged index: its members are not those of a tar file of {shard_bytes} "
            "bytes"
        )
    return index


def pack_index(index: TarIndex) -> bytes:
    """Return the bytes of the index file."""
    suffixes = _SEPARATOR.join(index.suffixes).encode()
    arrays = {
        "keys": np.frombuffer(index.keys, np.uint8),
        "suffixes": np.frombuffer(suffixes, np.uint8),
    }
    for name in _DTYPES.keys() - arrays.keys():
        arrays[name] = getattr(index, name)
    return save(dict(sorted(arrays.items())))


def _consistent(index: TarIndex) -> bool:
    members = (index.kinds, index.blocks, index.sizes, index.crc32)
    lengths = {array.shape for array in members if array is not None}
    return (
        len(lengths) == 1
        and all(a.ndim == 1 for a in (index.kinds, index.first, index.key_ends))
        and len(index.first) == len(index.key_ends) + 1 >= 2
        and int(index.first[0]) == 0
        and (int(index.first[-1]),) in lengths
        and bool((index.first[1:] > index.first[:-1]).all())
        and bool((index.key_ends[1:] > index.key_ends[:-1]).all())
        and int(index.key_ends[-1]) == len(index.keys)
        and int(index.kinds.max()) < len(index.suffixes)
        and not _begin_within_characters(index)
    )


def _begin_within_characters(index: TarIndex) -> bool:
    """Return whether a key begins in the middle of a character in UTF-8."""
    first_bytes = np.frombuffer(index.keys, np.uint8)[index.key_ends[:-1]]
    return bool(((first_bytes & 0xC0) == 0x80).any())


def _fits_a_tar(index: TarIndex, shard_bytes: int) -> bool:
    """Return whether members follow each other, within the file, and differ within a sample."""
    starts = index.blocks.astype(np.int64) * BLOCK
    ends = starts + index.sizes
    first = index.first.astype(np.int64)
    num_members = first[1:] - first[:-1]
    samples = np.repeat(np.arange(index.num_samples), num_members)
    members = samples * len(index.suffixes) + index.kinds
    key_lengths = np.diff(index.key_ends.astype(np.int64), prepend=0)
    return (
        int(starts[0]) >= BLOCK  # every member follows its header
        and bool((starts[1:] >= ends[:-1] + BLOCK).all())
        and int(ends[-1]) <= shard_bytes
        and len(np.unique(members)) == len(members)
        and int(num_members.max()) <= MAX_SAMPLE_MEMBERS
        and int(key_lengths.max()) <= MAX_NAME_BYTES
    )
