"""Runs on damaged data: replaced samples are counted exactly, and too many of them end the run."""

import json
import os
import shutil

import numpy as np
import pytest
import torch

from data_pipelines.decode.codecs import encode_jpeg, encode_json
from data_pipelines.errors import DataError
from data_pipelines.shards.manifest import Field, Manifest
from data_pipelines.shards.remote import check_url
from data_pipelines.shards.writer import ShardWriter
from trainer.config.loading import parse_config
from trainer.errors import UserError
from trainer.health.damaged_samples import MAX_WARNINGS, DamagedSampleCounter
from trainer.loop import train
from trainer.run_data import open_manifest, open_shards, steps_per_epoch

FIELDS = {
    "rgb": Field(member="rgb.jpg", kind="image", channels=3),
    "odd": Field(member="attributes.json", key="odd", kind="binary"),
    "dark": Field(member="attributes.json", key="dark", kind="binary"),
}
REPLACE = {"on_error": "replace", "max_bad_fraction": 0.2}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """40 samples in 10 shards."""
    root = tmp_path_factory.mktemp("shards")
    with ShardWriter(root, "train", 4) as writer:
        for number in range(40):
            rng = np.random.default_rng(number)
            picture = rng.integers(0, 256, (16, 16, 3)).astype(np.uint8)
            labels = {"odd": number % 2, "dark": number // 2 % 2}
            members = {"rgb.jpg": encode_jpeg(picture), "attributes.json": encode_json(labels)}
            writer.write(f"s{number}", members)
    split = writer.split(dict.fromkeys(FIELDS, 40))
    Manifest(dataset="small", fields=FIELDS, splits={"train": split}).save(root)
    return root


@pytest.fixture
def damaged(whole, tmp_path):
    """A tenth of the samples has other bytes than the manifest says."""
    root = tmp_path / "shards"
    shutil.copytree(whole, root)
    path = root / "train-000003.tar"
    path.write_bytes(b"x" * path.stat().st_size)
    return root


def records(session):
    session.log.close()
    return [json.loads(line) for line in session.folder.metrics.read_text().splitlines()]


def test_replaced_samples_are_counted_in_the_metrics(damaged, session_of, caplog):
    """10 steps of 8 are two epochs of 40, with 4 bad samples in each."""
    session = session_of(
        damaged,
        16,
        batch=8,
        run={"steps": 10},
        data=REPLACE,
        log={"every": 5},
        eval={"batch_size": 6},
    )
    train(session)
    found = records(session)
    assert [r["replaced"] for r in found if r["kind"] == "train"] == [4, 8]
    (evaluated,) = (r for r in found if r["kind"] == "eval")
    assert evaluated["replaced"] == 4
    assert all(np.isfinite(r["loss"]) for r in found if r["kind"] == "train")
    messages = [r.getMessage() for r in caplog.records if "replaced a damaged" in r.getMessage()]
    assert len(messages) == 12
    assert all(str(damaged / "train-000003.tar") in message for message in messages)


def test_a_resumed_run_writes_the_same_counts(damaged, session_of):
    options = {
        "run": {"steps": 10, "checkpoint_every": 3, "keep_last": 9, "resume": "auto"},
        "pruning": {"begin": 0.9, "end": 0.9},
        "data": REPLACE,
        "log": {"every": 4},
    }
    session = session_of(damaged, 16, batch=8, **options)
    train(session)
    whole_run = session.folder.metrics.read_bytes()
    session.log.close()
    checkpoints = sorted(session.folder.checkpoints.glob("step-*"))
    for folder in checkpoints[1:]:
        shutil.rmtree(folder)
    (session.folder.checkpoints / "latest").write_text(checkpoints[0].name)
    resumed = session_of(damaged, 16, batch=8, **options)
    assert resumed.step == 3
    train(resumed)
    resumed.log.close()
    assert resumed.folder.metrics.read_bytes() == whole_run


def test_too_many_bad_samples_end_the_run(damaged, session_of):
    strict = REPLACE | {"max_bad_fraction": 0.05}
    session = session_of(damaged, 16, batch=8, run={"steps": 10}, data=strict, log={"every": 1})
    with pytest.raises(DataError) as caught:
        train(session)
    message = str(caught.value)
    assert message.startswith("data.max_bad_fraction: ")
    assert "samples were damaged, allowed is a fraction of 0.05; the last: " in message
    assert "train-000003.tar: member s1" in message
    assert session.step < 10
    session.log.close()


def test_damage_stops_a_run_by_default(damaged, session_of):
    session = session_of(damaged, 16, batch=8, run={"steps": 10})
    with pytest.raises(DataError, match=r"train-000003\.tar: member s1\d\.\S+: damaged: crc32"):
        train(session)
    session.log.close()


def test_sound_data_is_counted_as_such(whole, session_of):
    session = session_of(whole, 16, batch=8, run={"steps": 2}, data=REPLACE, log={"every": 1})
    train(session)
    counted = [r["replaced"] for r in records(session) if r["kind"] in ("train", "eval")]
    assert counted == [0, 0, 0]


def test_without_replacing_nothing_is_recorded(whole, session_of):
    session = session_of(whole, 16, batch=8, run={"steps": 1}, log={"every": 1})
    train(session)
    assert not any("replaced" in record for record in records(session))


def test_warnings_end_after_a_while(whole, tmp_path, session_of, caplog):
    root = tmp_path / "shards"
    shutil.copytree(whole, root)
    for path in root.glob("*.tar"):
        path.write_bytes(b"x" * path.stat().st_size)
    data = {"on_error": "replace", "max_bad_fraction": 1.0}
    session = session_of(root, 16, batch=8, run={"steps": 5}, data=data, log={"every": 5})
    train(session)
    assert [r["replaced"] for r in records(session) if r["kind"] == "train"] == [40]
    texts = [record.getMessage() for record in caplog.records]
    own = texts[: texts.index("further damaged samples are only counted")]
    assert sum("replaced a damaged sample" in text for text in own) == MAX_WARNINGS


def test_a_stream_trains_and_evaluates_on_the_shards(whole, session_of, caplog):
    data = {"tar_urls": f"{whole}/train-{{000000..000009}}.tar"}
    session = session_of(whole, 16, batch=8, run={"steps": 3}, data=data, log={"every": 1})
    train(session)
    kinds = [r["kind"] for r in records(session)]
    assert (kinds.count("train"), kinds.count("eval")) == (3, 1)
    assert "10 tars are read as a stream" in caplog.text


class OneOfTwoRanks:
    """Stands for an accelerator whose other rank has seen three bad samples at each sum."""

    device = torch.device("cpu")

    def reduce(self, tensor, reduction):
        assert reduction == "sum"
        return tensor + 3


def test_all_ranks_count_and_stop_together():
    section = config_of(on_error="replace", max_bad_fraction=0.1).data
    counter = DamagedSampleCounter(OneOfTwoRanks(), section, split_samples=100, total=2)
    assert list(counter.count([])) == []
    counter.check(50)
    assert counter.total == 5
    counter.check(50)
    with pytest.raises(DataError) as caught:
        counter.check(50)
    assert str(caught.value) == (
        "data.max_bad_fraction: 11 of 50 samples were damaged, allowed is a fraction of 0.1; "
        "the last: on another rank"
    )


def test_chance_alone_does_not_end_a_long_run():
    """Three bad of the first ten: of a large split, that says nothing yet; of ten it does."""
    section = config_of(on_error="replace", max_bad_fraction=0.01).data
    DamagedSampleCounter(OneOfTwoRanks(), section, split_samples=10**6).check(10)
    with pytest.raises(DataError, match=r"3 of 10 samples were damaged"):
        DamagedSampleCounter(OneOfTwoRanks(), section, split_samples=10).check(10)


def config_of(**data):
    tree = {
        "run": {"out": "out", "epochs": 1},
        "data": {"shards": "here", "image_size": [8, 8], "global_batch": 8, **data},
        "model": {"branches": 1, "encoder": {"name": "mlp"}},
    }
    return parse_config(tree, "test")


def test_a_stream_has_no_epochs():
    with pytest.raises(UserError, match=r"run\.epochs: data\.tar_urls has no end, give run\.steps"):
        steps_per_epoch(config_of(tar_urls="a.tar"), None)


def test_urls_stay_urls():
    config = config_of(shards="s3://bucket/shards")
    assert config.data.shards == "s3://bucket/shards"
    assert parse_config(config.model_dump(mode="json"), "again") == config
    assert config_of().data.shards.name == "here"


@pytest.mark.parametrize("key", ["shards", "tar_urls"])
def test_pipes_are_refused_by_name(key):
    with pytest.raises(UserError, match=rf"data\.{key}: 'pipe:ls': pipe: would run a command"):
        config_of(**{key: "pipe:ls"})
    assert check_url("pipes/of/mine") == "pipes/of/mine"


def test_the_cache_has_the_size_asked_for(whole, tmp_path):
    config = config_of(shards=f"file://{whole}", cache_dir=str(tmp_path / "c"), cache_gb=0.00002)
    with pytest.raises(DataError, match=r"data\.cache_gb: .* the cache holds at most 20000"):
        folder = open_shards(config)
        split = Manifest.load(folder).split("train")
        for shard in split.shards:
            os.close(folder._cache.open("u://x", shard.bytes, shard.sha256, None)[1])


def test_a_stream_needs_only_the_evaluation_split(whole):
    missing = config_of(shards=str(whole), train_split="none", eval_split="train")
    with pytest.raises(DataError, match="split 'none': small has train"):
        open_manifest(missing)
    streamed = config_of(
        shards=str(whole), train_split="none", eval_split="train", tar_urls="a.tar"
    )
    assert open_manifest(streamed).dataset == "small"
