"""Shards: content, reproducible bytes, no partial file under a final name."""

import gc
import hashlib
import os
import tarfile

import pytest
import webdataset

from data_pipelines.errors import DataError
from data_pipelines.shards.writer import ShardWriter


def test_content_and_manifest_entry_agree_with_the_files(tmp_path, write_split, members_of):
    split = write_split(tmp_path, "train", 25)
    assert [shard.samples for shard in split.shards] == [10, 10, 5]
    assert split.num_samples == 25
    number = 0
    for shard in split.shards:
        data = (tmp_path / shard.name).read_bytes()
        assert len(data) == shard.bytes
        assert hashlib.sha256(data).hexdigest() == shard.sha256
        with tarfile.open(tmp_path / shard.name) as tar:
            stored: dict[str, dict[str, bytes]] = {}
            for member in tar:
                key, _, suffix = member.name.partition(".")
                stored.setdefault(key, {})[suffix] = tar.extractfile(member).read()
                assert (member.mtime, member.uid, member.gid) == (0, 0, 0)
        for key, members in stored.items():
            assert key == f"train{number}"
            assert members == members_of(number)
            number += 1
    assert number == 25


def test_webdataset_reads_the_same_samples(tmp_path, write_split, members_of):
    split = write_split(tmp_path, "val", 12)
    urls = [str(tmp_path / shard.name) for shard in split.shards]
    samples = list(webdataset.WebDataset(urls, shardshuffle=False))
    assert [sample["__key__"] for sample in samples] == [f"val{n}" for n in range(12)]
    assert samples[5]["rgb.png"] == members_of(5)["rgb.png"]


def test_bytes_depend_only_on_the_samples(tmp_path, write_split):
    first = write_split(tmp_path / "a", "train", 12)
    second = write_split(tmp_path / "b", "train", 12)
    assert first == second


@pytest.mark.filterwarnings("error")
def test_an_exception_leaves_finished_shards_only(tmp_path):
    with pytest.raises(RuntimeError, match="stop"), ShardWriter(tmp_path, "train", 2) as writer:
        for number in range(3):
            writer.write(f"k{number}", {"a.json": b"{}"})
        assert len(os.listdir(tmp_path)) == 3
        raise RuntimeError("stop")
    gc.collect()
    assert sorted(os.listdir(tmp_path)) == ["train-000000.tar", "train-000000.tar.index"]
    assert len(writer.shards) == 1


def test_an_unfinished_shard_has_no_final_name(tmp_path):
    with ShardWriter(tmp_path, "train") as writer:
        writer.write("k", {"a.json": b"{}"})
        (unfinished,) = os.listdir(tmp_path)
        assert unfinished.startswith(".partial-") and unfinished.endswith("-train-000000.tar")
    assert sorted(os.listdir(tmp_path)) == ["train-000000.tar", "train-000000.tar.index"]


def test_a_key_comes_once_in_a_split(tmp_path):
    with (
        pytest.raises(DataError, match="split train: key 'k' is written twice"),
        ShardWriter(tmp_path, "train", 1) as writer,
    ):
        writer.write("k", {"a.json": b"{}"})
        writer.write("k", {"a.json": b"{}"})


@pytest.mark.parametrize("key", ["a.b", "a/b", "", "a\0"])
def test_a_bad_key_is_refused(tmp_path, key):
    with (
        ShardWriter(tmp_path, "train") as writer,
        pytest.raises(ValueError, match=r"key: .* without dot or slash"),
    ):
        writer.write(key, {"a.json": b"{}"})
    assert writer.shards == ()


@pytest.mark.parametrize("suffix", ["json", "_meta.json", "../a.json", "a..json", ""])
def test_a_bad_suffix_is_refused(tmp_path, suffix):
    with (
        ShardWriter(tmp_path, "train") as writer,
        pytest.raises(ValueError, match=r"must look like field\.codec"),
    ):
        writer.write("k", {suffix: b"{}"})


def test_a_sample_needs_a_member(tmp_path):
    with (
        ShardWriter(tmp_path, "train") as writer,
        pytest.raises(ValueError, match="sample 'k' has none"),
    ):
        writer.write("k", {})


def test_an_empty_split_is_refused(tmp_path):
    with ShardWriter(tmp_path, "train") as writer:
        pass
    with pytest.raises(DataError, match="split train: no samples were written"):
        writer.split({})


def test_samples_per_shard_must_be_positive(tmp_path):
    with pytest.raises(ValueError, match="samples_per_shard: 0 must be at least 1"):
        ShardWriter(tmp_path, "train", 0)
