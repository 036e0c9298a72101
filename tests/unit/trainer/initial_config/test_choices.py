"""The values of a starting configuration."""

import json
import shutil

import pytest

from data_pipelines.shards.manifest import Manifest
from trainer.errors import UserError
from trainer.initial_config.choices import _batch, _branches, _every, _rounded, _splits, choose


@pytest.mark.parametrize(
    ("num_samples", "batch"),
    [(1, 1), (2, 2), (15, 2), (64, 8), (400, 32), (511, 32), (512, 64), (10**6, 64)],
)
def test_the_batch_fits_into_an_epoch(num_samples, batch):
    assert _batch(num_samples) == batch <= num_samples


@pytest.mark.parametrize(
    ("num_tasks", "branches"), [(1, 1), (2, 2), (5, 3), (24, 3), (40, 4), (200, 6), (1000, 8)]
)
def test_branches_grow_with_the_tasks(num_tasks, branches):
    assert _branches(num_tasks) == branches <= num_tasks


@pytest.mark.parametrize(
    ("steps", "every"), [(5, 1), (80, 8), (800, 80), (2046, 200), (31260, 3100)]
)
def test_a_tenth_of_the_run_as_a_round_number(steps, every):
    assert _every(steps, 10) == every


@pytest.mark.parametrize(("side", "rounded"), [(5, 32), (64, 64), (100, 96), (218.4, 224)])
def test_sides_are_multiples_that_encoders_divide_by(side, rounded):
    assert _rounded(side) == rounded


def manifest_of(**sizes):
    shard = {"name": "a.tar", "bytes": 1, "sha256": "0" * 64}
    splits = {
        name: {"shards": [{**shard, "name": f"{name}.tar", "samples": size}], "labelled": {}}
        for name, size in sizes.items()
    }
    fields = {"rgb": {"member": "rgb.jpg", "kind": "image"}}
    return Manifest.model_validate({"dataset": "mine", "fields": fields, "splits": splits})


@pytest.mark.parametrize(
    ("sizes", "expected"),
    [
        ({"train": 5, "val": 2, "test": 9}, ("train", "val")),
        ({"train": 5, "test": 2}, ("train", "test")),
        ({"a": 5, "b": 20}, ("b", "a")),
        ({"train": 5, "mine": 2}, ("train", "mine")),
        ({"train": 5}, ("train", "train")),
    ],
)
def test_splits(sizes, expected):
    assert _splits(manifest_of(**sizes)) == expected


def test_digits(digits):
    start = choose(str(digits))
    assert start.values["data"]["image_size"] == [64, 64]
    assert start.values["data"]["shards"] == str(digits)
    assert len(start.tasks) == 24 and start.values["model"]["branches"] == 3
    assert not start.left_out
    run = start.values["run"]
    assert 10 <= run["epochs"] <= 100 and run["out"] == "runs/digits"


def test_labels_that_cannot_be_trained_are_left_out_with_the_reason(rooms, tmp_path):
    root = shutil.copytree(rooms, tmp_path / "shards")
    path = root / "manifest.json"
    manifest = json.loads(path.read_text())
    manifest["splits"]["val"]["labelled"]["has_sphere"] = 0
    del manifest["splits"]["val"]["class_counts"]["has_sphere"]
    manifest.pop("checksum")
    path.write_text(json.dumps(manifest))
    start = choose(str(root))
    assert list(start.left_out) == ["has_sphere"]
    assert "no labels in split val" in start.left_out["has_sphere"]
    assert {task.name for task in choose(str(rooms)).tasks} - {
        task.name for task in start.tasks
    } == {"has_sphere"}


def test_shards_without_labels(rooms, tmp_path):
    root = shutil.copytree(rooms, tmp_path / "shards")
    path = root / "manifest.json"
    manifest = json.loads(path.read_text())
    manifest["fields"] = {k: v for k, v in manifest["fields"].items() if v["kind"] == "image"}
    for split in manifest["splits"].values():
        split["labelled"] = {k: v for k, v in split["labelled"].items() if k in manifest["fields"]}
        split["class_counts"] = {}
    manifest.pop("checksum")
    path.write_text(json.dumps(manifest))
    with pytest.raises(UserError, match="no label can be trained: there is none"):
        choose(str(root))
