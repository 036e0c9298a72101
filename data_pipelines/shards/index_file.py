"""The file beside a shard that says where its members lie and what their checksums are."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load, save

from data_pipelines.errors import DataError
from data_pipelines.shards.manifest import IndexFile, index_name, publish
from data_pipelines.shards.sources import LocalFile
from data_pipelines.shards.tar_index import TarIndex, index_tar

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
_SEPARATOR = "/"  # no suffix has one: it begins after a name's last slash


def write_index(shard: Path, content: Path | None = None) -> tuple[int, IndexFile]:
    """Read a shard once and write its index beside it.

    Args:
        shard: The tar file.
        content: Where the tar lies as long as it has not got its final name.

    Returns:
        The shard's number of samples, and the manifest's entry for the index.

    Raises:
        DataError: The shard cannot be read or is damaged.
    """
    with open(content or shard, "rb") as tar:
        index = index_tar(LocalFile(str(shard), tar.fileno()), checksums=True)
    data = _packed(index)
    path = shard.with_name(index_name(shard.name))
    with open(path.with_name(f"{path.name}.partial"), "wb") as file:
        file.write(data)
        publish(file, path)
    return index.num_samples, IndexFile(bytes=len(data), sha256=hashlib.sha256(data).hexdigest())


def read_index(where: str, data: bytes, sha256: str) -> TarIndex:
    """The index in the bytes of its file.

    Args:
        where: The file, for messages.
        data: Its bytes.
        sha256: The hash that the manifest has.

    Raises:
        DataError: The bytes are not the manifest's, or no index.
    """
    found = hashlib.sha256(data).hexdigest()
    if found != sha256:
        raise DataError(f"{where}: damaged index: sha256 {found}, manifest says {sha256}")
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
