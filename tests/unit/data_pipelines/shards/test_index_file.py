"""The index of a shard: equal to the content of the tar, and refused if it is damaged."""

import hashlib
import tarfile
import zlib

import numpy as np
import pytest
from safetensors.numpy import load, save

from data_pipelines.errors import DataError
from data_pipelines.shards.index_file import read_index, write_index
from data_pipelines.shards.manifest import check_shards
from data_pipelines.shards.store import ShardStore

ALL = frozenset({"rgb.png", "normal.png", "depth.png", "attributes.json"})


@pytest.fixture
def first(shards):
    """The first shard's path, its entry and its index's bytes."""
    shard = shards.manifest.split("train").shards[0]
    return shards.root / shard.name, shard, (shards.root / f"{shard.name}.index").read_bytes()


def test_members_are_those_that_tarfile_lists(first):
    path, shard, data = first
    index = read_index("x", data, shard.index.sha256, shard.bytes)
    members = [
        (f"{index.key(n)}.{m.suffix}", m.offset, m.size, m.crc32)
        for n in range(index.num_samples)
        for m in index.members(n)
    ]
    with tarfile.open(path) as tar:
        expected = [
            (m.name, m.offset_data, m.size, zlib.crc32(tar.extractfile(m).read())) for m in tar
        ]
    assert members == expected
    assert index.num_samples == shard.samples
    assert index.num_bytes < 20 * len(members) + 20 * shard.samples + 10


def test_an_index_written_later_is_the_same(first, tmp_path):
    path, shard, data = first
    copy = tmp_path / path.name
    copy.write_bytes(path.read_bytes())
    assert write_index(copy) == (shard.samples, shard.index)
    assert (tmp_path / f"{path.name}.index").read_bytes() == data


def test_a_damaged_tar_gets_no_index(first, tmp_path):
    path = tmp_path / "t.tar"
    path.write_bytes(first[0].read_bytes()[:5000])
    with pytest.raises(DataError, match=rf"{path}: truncated shard"):
        write_index(path)
    assert list(tmp_path.iterdir()) == [path]


def test_another_index_than_the_manifests_is_refused(first):
    _, shard, data = first
    for damaged in (data[:-1], data + b"0", bytes([data[0] ^ 1]) + data[1:], b""):
        with pytest.raises(DataError, match=r"x: damaged index: sha256 \w+, recorded \w+"):
            read_index("x", damaged, shard.index.sha256, shard.bytes)


@pytest.mark.parametrize(
    ("name", "change", "expected"),
    [
        ("sizes", lambda a: a[:-1], "its arrays do not fit each other"),
        ("first", lambda a: a[::-1].copy(), "its arrays do not fit each other"),
        ("first", lambda a: a + 1, "its arrays do not fit each other"),
        ("key_ends", lambda a: a * 2, "its arrays do not fit each other"),
        ("key_ends", lambda a: a[::-1].copy(), "its arrays do not fit each other"),
        ("kinds", lambda a: a + 100, "its arrays do not fit each other"),
        ("blocks", lambda a: a.reshape(1, -1), "its arrays do not fit each other"),
        ("keys", lambda a: a | 128, "'utf-8' codec can't decode"),
        ("crc32", lambda a: a.astype(np.int64), "an index has ['blocks', 'crc32',"),
        ("crc32", None, "holds ['blocks', 'first', 'key_ends',"),
    ],
)
def test_arrays_that_make_no_index_are_refused(first, name, change, expected):
    arrays = load(first[2])
    if change is None:
        del arrays[name]
    else:
        arrays[name] = change(arrays[name])
    data = save(arrays)
    with pytest.raises(DataError) as caught:
        read_index("x", data, hashlib.sha256(data).hexdigest(), 10**6)
    assert str(caught.value).startswith("x: ")
    assert expected in str(caught.value)


def test_bytes_that_are_no_index_at_all():
    data = b"no index"
    with pytest.raises(DataError, match="x: damaged index: "):
        read_index("x", data, hashlib.sha256(data).hexdigest(), 10**6)


def test_a_missing_index_is_named(shards, tmp_path):
    split = shards.manifest.split("val")
    for shard in split.shards:
        (tmp_path / shard.name).write_bytes((shards.root / shard.name).read_bytes())
    with pytest.raises(DataError, match=r"val-000000\.tar\.index: missing index"):
        check_shards(tmp_path, split)
    with pytest.raises(DataError, match=r"val-000000\.tar\.index: missing index"):
        ShardStore(tmp_path, split.shards).read(0, ALL)


def test_reading_with_and_without_an_index_gives_the_same(shards):
    split = shards.manifest.split("train")
    plain = ShardStore(shards.root, [s.model_copy(update={"index": None}) for s in split.shards])
    indexed = ShardStore(shards.root, split.shards)
    for number in range(37):
        for members in (ALL, ["rgb.png"], ["attributes.json", "rgb.png"], []):
            assert indexed.read(number, members) == plain.read(number, members)
