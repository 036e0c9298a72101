"""Tars read as a stream: samples, damage, failures of the source, refused arguments."""

import os
import shutil
import tarfile

import pytest

from data_pipelines.errors import DataError, SourceError
from data_pipelines.reading import streaming
from data_pipelines.reading.fields import LabelRequest
from data_pipelines.reading.loader import eval_loader
from data_pipelines.reading.streaming import stream_batches
from data_pipelines.transforms import Geometry


@pytest.fixture(autouse=True)
def small_buffer(monkeypatch):
    monkeypatch.setattr(streaming, "SHUFFLE_BUFFER", 40)


def stream(shards, pattern, **options):
    options = {"seed": 1, "global_batch": 4, "num_steps": 15} | options
    return stream_batches(pattern, shards.manifest, shards.requests, Geometry((8, 12)), **options)


def pattern_of(folder):
    return f"{folder}/train-{{000000..000003}}.tar"


@pytest.fixture
def copied(shards, tmp_path):
    shutil.copytree(shards.root, tmp_path, dirs_exist_ok=True)
    return tmp_path


def test_samples_are_those_of_the_shards(shards, caplog):
    expected = {}
    for batch in eval_loader(
        shards.root, shards.manifest, shards.requests, (8, 12), batch_size=1, split="train"
    ):
        expected[batch.keys[0]] = batch
    batches = list(stream(shards, pattern_of(shards.root)))
    assert len(batches) == 15
    seen = set()
    for batch in batches:
        assert batch.images.shape == (4, 3, 8, 12)
        for number, key in enumerate(batch.keys):
            assert (batch.images[number] == expected[key].images[0]).all()
            assert (batch.valid_rows[:, number] == expected[key].valid_rows[:, 0]).all()
            assert (batch.scalars[:, number] == expected[key].scalars[:, 0]).all()
            seen.add(key)
    assert len(seen) > 18
    assert "a resumed run does not see the samples that it would have seen" in caplog.text
    assert "4 tars are read as a stream" in caplog.text


def keys_of(batches):
    return [batch.keys for batch in batches]


def test_the_same_seed_gives_the_same_stream_and_ranks_differ(shards):
    first = keys_of(stream(shards, pattern_of(shards.root)))
    assert keys_of(stream(shards, pattern_of(shards.root))) == first
    assert keys_of(stream(shards, pattern_of(shards.root), seed=2)) != first
    ranks = [
        keys_of(
            stream(
                shards, pattern_of(shards.root), rank=r, world_size=2, gradient_accumulation_steps=2
            )
        )
        for r in range(2)
    ]
    assert [len(keys) for keys in ranks] == [30, 30]
    assert {len(key) for keys in ranks for key in keys} == {1}
    assert ranks[0] != ranks[1]
    assert len(keys_of(stream(shards, pattern_of(shards.root), start_step=11))) == 4


def test_workers_read_different_streams(shards):
    keys = keys_of(stream(shards, pattern_of(shards.root), workers=2))
    assert len(keys) == 15
    assert keys[0::2][:7] != keys[1::2]


def test_http_streams(shards, served):
    assert keys_of(stream(shards, pattern_of(served.url))) == keys_of(
        stream(shards, pattern_of(shards.root))
    )


@pytest.mark.usefixtures("patient")
def test_a_source_that_fails_for_a_while_is_left_for_another_tar(shards, served, caplog):
    served.refuse = 3
    assert len(keys_of(stream(shards, pattern_of(served.url)))) == 15
    assert "going on with another tar" in caplog.text


@pytest.mark.usefixtures("patient")
def test_a_source_that_fails_for_good(shards, served):
    served.refuse = 10**6
    message = r"train-00000\d\.tar: failed, as \d+ tars before in 0\.2 s"
    with pytest.raises(SourceError, match=message):
        list(stream(shards, pattern_of(served.url), on_error="replace", retry_seconds=0.2))
    assert len(served.asked) > 2


def cut_between_members(path):
    with tarfile.open(path) as tar:
        os.truncate(path, tar.getmembers()[6].offset)


def cut_in_a_member(path):
    with tarfile.open(path) as tar:
        os.truncate(path, tar.getmembers()[6].offset_data + 3)


def no_tar(path):
    path.write_bytes(b"not a tar at all" * 100)


def compressed(path):
    with tarfile.open(path, "w:gz"):
        pass


DAMAGES = {
    cut_between_members: r"truncated tar: it ends at byte \d+, before its end-of-archive mark",
    cut_in_a_member: r"truncated tar: it ends at byte \d+, before its end-of-archive mark",
    no_tar: r"damaged header at byte 0: ",
    compressed: r"a compressed tar; allowed are plain ones",
    os.unlink: r"missing",
}


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda d: d.__name__)
def test_damaged_tars_stop_or_are_replaced(shards, copied, damage):
    path = copied / "train-000002.tar"
    damage(path)
    with pytest.raises(DataError, match=rf"{path}: {DAMAGES[damage]}"):
        list(stream(shards, pattern_of(copied)))
    batches = list(stream(shards, pattern_of(copied), on_error="replace", num_steps=80))
    damage = [message for batch in batches for message in batch.damage]
    assert damage
    assert {message.partition(": ")[0] for message in damage} == {str(path)}
    keys = {key for batch in batches for key in batch.keys}
    assert "" in keys
    # The sample that was cut is not taken for one with missing labels
    assert keys & {f"train{n}" for n in range(20, 30)} <= {"train20"}
    assert all(len(batch.images) == 4 for batch in batches)


def test_a_damaged_sample_stops_or_is_replaced(shards, copied):
    path = copied / "train-000001.tar"
    with tarfile.open(path) as tar:
        member = tar.getmember("train13.rgb.png")
    with open(path, "r+b") as file:
        file.seek(member.offset_data)
        file.write(b"garbage")
    with pytest.raises(DataError, match=rf"{path}: sample train13: rgb\.png: damaged PNG"):
        list(stream(shards, pattern_of(copied), num_steps=30))
    batches = list(stream(shards, pattern_of(copied), num_steps=30, on_error="replace"))
    damage = [message for batch in batches for message in batch.damage]
    assert damage
    assert all("sample train13: rgb.png: damaged PNG" in message for message in damage)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"pattern": "pipe:cat x.tar"}, "pipe: would run a command"),
        ({"pattern": "a.tar::pipe:cat x.tar"}, "pipe: would run a command"),
        (
            {"pattern": "a.tar", "world_size": 3},
            "data.global_batch: 4 must be a multiple of 3 proc",
        ),
    ],
)
def test_what_cannot_be_streamed_is_refused_at_once(shards, changes, expected):
    with pytest.raises(DataError) as caught:
        stream(shards, **changes)
    assert expected in str(caught.value)


def test_labels_are_not_counted_in_a_stream_but_must_exist(shards):
    changed = shards.requests
    with pytest.raises(DataError, match="task x: no label field 'nothing' in toy"):
        stream_batches(
            "a.tar",
            shards.manifest,
            [*changed, LabelRequest("x", "nothing")],
            Geometry((8, 12)),
            seed=0,
            global_batch=1,
            num_steps=1,
        )
