"""Counts of classes, compared with a plain reading of the tars."""

import io
import json
import logging
import tarfile
from collections import Counter

import numpy as np
import pytest
from PIL import Image

from data_pipelines.errors import DataError
from data_pipelines.reading import class_counts as module
from data_pipelines.reading.class_counts import class_counts
from data_pipelines.reading.fields import LabelRequest
from data_pipelines.shards.manifest import Manifest

SOLIDS = LabelRequest("solids", "num_solids", num_classes=8)
SPHERE = LabelRequest("sphere", "has_sphere", kind="binary", num_classes=2)


@pytest.fixture
def uncounted(rooms, tmp_path, monkeypatch):
    """The manifest of the rooms as an earlier version wrote it, and no kept counts."""
    monkeypatch.setenv("DMTG_CACHE_DIR", str(tmp_path / "cache"))
    manifest = Manifest.load(rooms)
    splits = {
        name: split.model_copy(update={"class_counts": {}})
        for name, split in manifest.splits.items()
    }
    return manifest.model_copy(update={"splits": splits})


@pytest.fixture
def passes(monkeypatch):
    """The ranges of samples that were counted."""
    ranges = []
    count = module._count_samples

    def record(*arguments):
        ranges.append(arguments[-1])
        return count(*arguments)

    monkeypatch.setattr(module, "_count_samples", record)
    return ranges


def naive(rooms, manifest, field, split="train", ignored=()):
    """The number of labels of each class in the tars."""
    entry, total = manifest.fields[field], Counter()
    for shard in manifest.split(split).shards:
        with tarfile.open(rooms / shard.name) as tar:
            for member in tar.getmembers():
                if not member.name.endswith(f".{entry.member}"):
                    continue
                data = tar.extractfile(member).read()
                if entry.key is None:
                    total.update(np.asarray(Image.open(io.BytesIO(data))).ravel().tolist())
                elif entry.key in (record := json.loads(data)):
                    total[record[entry.key]] += 1
    return {int(name): count for name, count in total.items() if name not in ignored}


def as_dict(counts):
    return {number: count for number, count in enumerate(counts) if count}


def test_labels_are_counted_once(rooms, uncounted, passes):
    num_classes = len(uncounted.fields["segment_semantic"].classes)
    pixels = LabelRequest("pixels", "segment_semantic", num_classes=num_classes, ignore_index=0)
    requests, called = [SOLIDS, SPHERE, pixels], []
    found = class_counts(
        rooms, uncounted, "train", requests, progress=False, on_progress=lambda: called.append(1)
    )
    assert list(found) == ["solids", "sphere", "pixels"] and len(found["solids"]) == 8
    assert as_dict(found["solids"]) == naive(rooms, uncounted, "num_solids")
    assert as_dict(found["sphere"]) == naive(rooms, uncounted, "has_sphere")
    assert as_dict(found["pixels"]) == naive(rooms, uncounted, "segment_semantic", ignored=[0])
    assert sum(map(len, passes)) == uncounted.split("train").num_samples
    assert len(called) == len(passes)
    again = class_counts(rooms, uncounted, "train", requests, progress=False)
    assert again == found and len(called) == len(passes), "the kept counts are used"
    class_counts(rooms, uncounted, "val", [SPHERE], progress=False)
    assert len(passes) > len(called), "another split is counted anew"


@pytest.mark.parametrize("content", ["{", "[]", '{"sphere": [1]}', '{"sphere": [-1, 2]}'])
def test_damaged_kept_counts_are_made_again(rooms, uncounted, passes, content, tmp_path):
    found = class_counts(rooms, uncounted, "train", [SPHERE], progress=False)
    (kept,) = (tmp_path / "cache" / "class_counts").glob("*.json")
    kept.write_text(content)
    before = len(passes)
    assert class_counts(rooms, uncounted, "train", [SPHERE], progress=False) == found
    assert len(passes) == 2 * before and json.loads(kept.read_text())["sphere"] == [
        *found["sphere"]
    ]


def test_where_nothing_can_be_kept_every_process_counts(
    rooms, uncounted, monkeypatch, tmp_path, caplog
):
    (tmp_path / "file").touch()
    monkeypatch.setenv("DMTG_CACHE_DIR", str(tmp_path / "file"))
    with caplog.at_level(logging.WARNING):
        found = class_counts(rooms, uncounted, "train", [SPHERE], progress=False)
    assert as_dict(found["sphere"]) == naive(rooms, uncounted, "has_sphere")
    assert "the counts of the classes are not kept" in caplog.text


def test_the_counts_of_the_manifest_are_used(rooms, uncounted, passes):
    split = uncounted.split("train").model_copy(update={"class_counts": {"has_sphere": (11, 5)}})
    manifest = uncounted.model_copy(update={"splits": {**uncounted.splits, "train": split}})
    wide = LabelRequest("wide", "has_sphere", num_classes=3)
    found = class_counts(rooms, manifest, "train", [SPHERE, wide], progress=False)
    assert found == {"sphere": (11, 5), "wide": (11, 5, 0)} and not passes


def test_a_damaged_sample_is_an_error_or_left_out(rooms, uncounted, monkeypatch):
    read = module.ShardStore.read

    def damaged(store, sample, members):
        if sample == 3:
            raise DataError("shard: damaged")
        return read(store, sample, members)

    monkeypatch.setattr(module.ShardStore, "read", damaged)
    with pytest.raises(DataError, match="shard: damaged"):
        class_counts(rooms, uncounted, "train", [SPHERE], progress=False)
    found = class_counts(rooms, uncounted, "train", [SPHERE], skip_damaged=True, progress=False)
    total = sum(naive(rooms, uncounted, "has_sphere").values())
    assert sum(found["sphere"]) in (total, total - 1)


@pytest.mark.slow
def test_several_processes_count_the_same(rooms, uncounted):
    found = class_counts(rooms, uncounted, "train", [SPHERE, SOLIDS], workers=2, progress=False)
    assert as_dict(found["solids"]) == naive(rooms, uncounted, "num_solids")
