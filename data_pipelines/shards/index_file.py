"""The index file of a shard: offset, size and checksum of every member."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load, save

from data_pipelines.errors import DataError
from data_pipelines.shards.manifest import IndexFile, index_name
from data_pipelines.shards.sources import LocalFile
from data_pipelines.shards.tar_index import TarIndex, index_tar
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
    data = _packed(index)
    with atomic_write(shard.with_name(index_name(shard.name)), "wb") as file:
        file.write(data)
    return index.num_samples, IndexFile(bytes=len(data), sha256=hashlib.sha256(data).hexdigest())


def read_index(where: str, data: bytes, sha256: str) -> TarIndex:
    """Return the index that the bytes of an index file hold.

    Args:
        where: Path or URL of the file, for messages.
        data: Its bytes.
        sha256: The hash in the manifest.

    Raises:
        DataError: The hash differs from the manifest's, or the bytes are not an index.
    """
    digest = hashlib.sha256(data).hexdigest()
    if digest != sha256:
        raise DataError(f"{where}: damaged index: sha256 {digest}, manifest says {sha256}")
    try:
        arrays = load(data)
    except SafetensorError as error:
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
    return index


def _packed(index: TarIndex) -> bytes:
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
        and len(index.first) == len(index.key_ends) + 1 >= 2
        and int(index.first[0]) == 0
        and (int(index.first[-1]),) in lengths
        and bool((index.first[1:] > index.first[:-1]).all())
        and bool((index.key_ends[1:] > index.key_ends[:-1]).all())
        and int(index.key_ends[-1]) == len(index.keys)
        and int(index.kinds.max()) < len(index.suffixes)
    )
