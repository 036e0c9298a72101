"""The manifest: round trip, identity, all errors in one message."""

import json
import os
import sys
from collections import Counter

import pytest

from data_pipelines.errors import DataError
from data_pipelines.shards.manifest import Field, Manifest, Shard, Split, check_shards

SHA = "0" * 64


def large(num_shards: int) -> Manifest:
    made = tuple(
        Shard(name=f"train-{n:06d}.tar", samples=1000, bytes=10240, sha256=SHA)
        for n in range(num_shards)
    )
    fields = {"rgb": Field(member="rgb.jpg", kind="image", channels=3)}
    return Manifest(
        dataset="big", fields=fields, splits={"train": Split(shards=made, labelled={"rgb": 1000})}
    )


def edited(shards, tmp_path, change) -> DataError:
    content = json.loads((shards.root / "manifest.json").read_text())
    change(content)
    (tmp_path / "manifest.json").write_text(json.dumps(content))
    with pytest.raises(DataError) as caught:
        Manifest.load(tmp_path)
    return caught.value


def test_round_trip_keeps_everything(shards):
    loaded = Manifest.load(shards.root)
    assert loaded == shards.manifest
    assert loaded.digest() == shards.manifest.digest()
    assert loaded.split("train").num_samples == 37


def test_digest_ignores_layout_and_sees_content(shards, tmp_path):
    content = json.loads((shards.root / "manifest.json").read_text())
    shuffled = dict(reversed(content.items()))
    (tmp_path / "manifest.json").write_text(json.dumps(shuffled))
    assert Manifest.load(tmp_path).digest() == shards.manifest.digest()
    content["splits"]["train"]["shards"][0]["sha256"] = SHA
    del content["checksum"]
    (tmp_path / "manifest.json").write_text(json.dumps(content))
    assert Manifest.load(tmp_path).digest() != shards.manifest.digest()


def test_save_leaves_no_other_file_and_replaces(tmp_path):
    large(1).save(tmp_path)
    large(2).save(tmp_path)
    assert os.listdir(tmp_path) == ["manifest.json"]
    assert Manifest.load(tmp_path).split("train").num_samples == 2000


def test_five_thousand_shards_load_with_few_calls(tmp_path):
    """A few Python calls for each shard: loading takes less than a second."""
    large(5000).save(tmp_path)
    calls = Counter()
    sys.setprofile(lambda _frame, event, _argument: calls.update([event]))
    try:
        manifest = Manifest.load(tmp_path)
    finally:
        sys.setprofile(None)
    assert manifest.split("train").num_samples == 5_000_000
    assert calls["call"] + calls["c_call"] < 10 * 5000
    assert (tmp_path / "manifest.json").stat().st_size < 1_500_000


def test_absent_manifest_names_the_file(tmp_path):
    with pytest.raises(DataError, match=r"manifest\.json: cannot be read"):
        Manifest.load(tmp_path)


def test_broken_json_is_reported(tmp_path):
    (tmp_path / "manifest.json").write_text('{"dataset": ')
    with pytest.raises(DataError, match=r"manifest\.json: manifest: Invalid JSON"):
        Manifest.load(tmp_path)


def test_all_errors_are_in_one_message(shards, tmp_path):
    def change(content):
        content["version"] = 2
        content["surprise"] = 1
        content["splits"]["val"]["shards"][1]["samples"] = 0
        content["splits"]["train"]["shards"][0]["name"] = "../train.tar"

    message = str(edited(shards, tmp_path, change))
    assert "version: 2: Input should be 1" in message
    assert "surprise: 1: Extra inputs are not permitted" in message
    assert "splits.val.shards.1.samples: 0: Input should be greater than 0" in message
    assert "splits.train.shards.0.name: '../train.tar'" in message
    assert len(message.splitlines()) == 4


@pytest.mark.parametrize(
    ("path", "value", "expected"),
    [
        (("image",), "depth", "image 'depth': must name a field of kind image, one of ['rgb']"),
        (("fields", "parity", "key"), None, "fields.parity: member 'attributes.json' and key None"),
        (("fields", "depth", "key"), "x", "kind dense_regression needs a picture member"),
        (("fields", "third", "classes"), ["a"], "kind multiclass needs at least two names"),
        (("fields", "parity", "classes"), ["a"], "kind binary has none"),
        (("fields", "number", "std"), 0, "std 0.0: must be greater than 0"),
        (("fields", "number", "std"), None, "mean 1.0 and std None: give both or neither"),
        (("fields", "number", "on_flip"), "negate_x", "allows 'keep' or 'forbid'"),
        (("splits", "val", "shards"), [], "splits.val: shards (): at least one is needed"),
        (("splits", "val", "labelled"), {"rgb": 12}, "labelled.rgb 12: the split has 11 samples"),
        (("splits", "val", "labelled"), {"x": 1}, "splits.val.labelled ['x']: no such fields"),
    ],
)
def test_inconsistent_entries_are_refused(shards, tmp_path, path, value, expected):
    def change(content):
        for part in path[:-1]:
            content = content[part]
        content[path[-1]] = value

    assert expected in str(edited(shards, tmp_path, change))


def test_mean_is_only_for_regression():
    with pytest.raises(ValueError, match="kind binary has none"):
        Field(member="a.json", key="x", kind="binary", mean=0.5, std=0.5)


def test_a_shard_named_twice_is_refused(shards, tmp_path):
    def change(content):
        content["splits"]["val"]["shards"] *= 2

    assert "shards val-000000.tar, val-000001.tar: named more than once" in str(
        edited(shards, tmp_path, change)
    )


def test_unknown_split_names_the_allowed(shards):
    with pytest.raises(DataError, match="split 'test': toy has train, val"):
        shards.manifest.split("test")


def test_check_shards_passes_good_shards(shards):
    check_shards(shards.root, shards.manifest.split("train"))


def test_check_shards_finds_missing_truncated_and_longer(tmp_path):
    split = large(3).split("train")
    (tmp_path / "train-000000.tar").write_bytes(bytes(10000))
    (tmp_path / "train-000002.tar").write_bytes(bytes(20480))
    with pytest.raises(DataError) as caught:
        check_shards(tmp_path, split)
    first, second, third = str(caught.value).splitlines()
    assert first.endswith("000000.tar: truncated shard: 10000 bytes, manifest says 10240")
    assert second.endswith("000001.tar: missing shard")
    assert third.endswith("000002.tar: wrong shard: 20480 bytes, manifest says 10240")


def test_check_shards_stops_listing_after_ten(tmp_path):
    with pytest.raises(DataError, match="and 90 more"):
        check_shards(tmp_path, large(100).split("train"))
