"""Labels that a task would take for something else: refused by name, never converted."""

import numpy as np
import pytest

from data_pipelines.convert.columns import ColumnReader
from data_pipelines.convert.dataset_files import DatasetFiles
from data_pipelines.convert.index import index_shards
from data_pipelines.convert.mapping import FieldMap
from data_pipelines.convert.tally import Tally
from data_pipelines.decode.codecs import encode_png
from data_pipelines.decode.planes import encode_planes
from data_pipelines.errors import DataError
from data_pipelines.reading.fields import Label, LabelRequest
from data_pipelines.shards.encoded import Storage
from data_pipelines.shards.manifest import Field, Manifest
from data_pipelines.shards.writer import ShardWriter
from trainer.config.loading import parse_config
from trainer.doctor.examine import examine
from trainer.run_data import open_data

FIELDS = {
    "rgb": Field(member="rgb.png", kind="image", channels=3),
    "depth": Field(member="depth.png", kind="dense_regression"),
    "normal": Field(member="normal.png", kind="dense_regression", channels=3),
    "map": Field(member="map.planes", kind="dense_classification", classes=("a", "b", "c")),
    "third": Field(member="a.json", key="third", kind="multiclass", classes=("x", "y", "z")),
    "pair": Field(member="a.json", key="pair", kind="multiclass", classes=("x", "y")),
    "hat": Field(member="a.json", key="hat", kind="binary"),
    "weight": Field(member="a.json", key="weight", kind="regression"),
}
GREY, COLOUR = np.arange(16, dtype=np.uint8).reshape(4, 4), np.ones((4, 4, 3), np.uint8)
MEMBERS = {
    "rgb.png": encode_png(COLOUR),
    "depth.png": encode_png(GREY),
    "normal.png": encode_png(COLOUR),
    "map.planes": encode_planes(GREY % 3),
    "a.json": b'{"third":2,"pair":1,"hat":1,"weight":0.5}',
}


@pytest.fixture
def data_of(tmp_path):
    """Opens the data of a run on shards of two samples with some members changed."""

    def open_run(names, define=None, **members):
        changed = MEMBERS | {name.replace("_", "."): data for name, data in members.items()}
        with ShardWriter(tmp_path / "data", "train") as writer:
            for key in ("s", "t"):
                writer.write(key, changed)
        split = writer.split(dict.fromkeys(FIELDS, 2))
        Manifest(dataset="toy", fields=FIELDS, splits={"train": split}).save(tmp_path / "data")
        tree = {
            "run": {"out": str(tmp_path / "run"), "steps": 1},
            "data": {
                "shards": str(tmp_path / "data"),
                "image_size": [4, 4],
                "global_batch": 2,
                "workers": 0,
                "eval_split": "train",
            },
            "tasks": {"names": names, "define": define or {}},
            "model": {"branches": 2, "encoder": {"name": "residual64"}},
        }
        return open_data(parse_config(tree, "test"))

    return open_run


def batches_of(data):
    return list(data.train_batches(0, 1, rank=0, world_size=1))


@pytest.mark.parametrize(
    ("task", "definition", "expected"),
    [
        (
            "third",
            {"kind": "binary", "channels": 1, "classes": []},
            "task third: 2 classes, field third has 3",
        ),
        (
            "third",
            {"channels": 2, "classes": []},
            "task third: 2 classes, field third has 3",
        ),
        (
            "map",
            {"channels": 2, "classes": []},
            "task map: 2 classes, field map has 3",
        ),
        (
            "depth",
            {"channels": 2},
            "task depth: channels 2, field depth has 1",
        ),
        (
            "map",
            {"kind": "dense_regression", "channels": 1, "classes": []},
            "task map: its kind learns from fields of kind dense_regression, field map is of kind "
            "dense_classification",
        ),
        (
            "depth",
            {"kind": "dense_classification", "channels": 4},
            "task depth: its kind learns from fields of kind dense_classification, field depth is "
            "of kind dense_regression",
        ),
        (
            "hat",
            {"kind": "regression"},
            "task hat: its kind learns from fields of kind regression, field hat is of kind binary",
        ),
        (
            "weight",
            {"kind": "binary"},
            "task weight: its kind learns from fields of kind binary, field weight is of kind "
            "regression",
        ),
        (
            "x",
            {"kind": "binary", "field": "depth"},
            "task x: its kind learns from fields of kind binary, field depth is of kind "
            "dense_regression",
        ),
    ],
)
def test_tasks_that_do_not_fit_their_field_are_refused_with_the_run(
    data_of, task, definition, expected
):
    with pytest.raises(DataError) as caught:
        data_of([task], {task: definition})
    assert str(caught.value) == expected


@pytest.mark.parametrize(
    ("task", "definition"),
    [
        ("pair", {"kind": "binary", "channels": 1}),
        ("hat", {"kind": "multiclass", "channels": 2}),
        ("third", {"channels": 5, "classes": []}),
        ("normal", {"channels": 2}),
    ],
)
def test_tasks_that_fit(data_of, task, definition):
    [batch] = batches_of(data_of([task], {task: definition}))
    assert batch.valid_rows.all()


FLOATS = GREY.astype(np.float32) % 3
MISREAD = {
    "colours for one channel": (
        "depth",
        {"depth_png": encode_png(COLOUR)},
        "field depth: depth.png has 3 channels, manifest says 1",
    ),
    "colours for a class map": (
        "map",
        {"map_planes": encode_planes(COLOUR)},
        "field map: map.planes has 3 channels, manifest says 1",
    ),
    "negative": (
        "map",
        {"map_planes": encode_planes(FLOATS - np.float32(0.9))},
        "field map: map.planes has the class id -0.8999999761581421, allowed are integers from 0",
    ),
    "between": (
        "map",
        {"map_planes": encode_planes(np.where(FLOATS == 2, np.float32(2.9), FLOATS))},
        "field map: map.planes has the class id 2.9000000953674316, allowed are integers from 0",
    ),
    "beyond": (
        "map",
        {"map_planes": encode_planes(np.where(GREY == 7, 255, GREY % 3).astype(np.uint8))},
        "field map: map.planes has the class id 255, allowed are integers from 0 to 2; "
        "`ignore_index` of the task names an id without a class",
    ),
}


@pytest.mark.parametrize("case", MISREAD)
def test_pictures_that_are_no_label_are_damage(data_of, tmp_path, case):
    task, members, expected = MISREAD[case]
    data = data_of([task], **members)
    with pytest.raises(DataError) as caught:
        batches_of(data)
    assert str(caught.value).startswith(f"{tmp_path}/data/train-000000.tar: sample ")
    assert expected in str(caught.value)


def test_ids_that_are_ignored_are_no_damage(data_of):
    ids = np.where(GREY == 7, 255, GREY % 3).astype(np.uint8)
    data = data_of(["map"], {"map": {"ignore_index": 255}}, map_planes=encode_planes(ids))
    [batch] = batches_of(data)
    assert (batch.dense["map"].numpy() == ids).all()
    data = data_of(["map"], {"map": {"ignore_index": 254}}, map_planes=encode_planes(ids))
    with pytest.raises(DataError, match=r"class id 255, .* from 0 to 2, and 254, which is ignored"):
        batches_of(data)


@pytest.mark.parametrize("num_classes", [None, 3])
@pytest.mark.parametrize("ignored", [None, -1, 255])
@pytest.mark.parametrize("dtype", ["uint8", "uint16", "int32", "float32"])
def test_the_ids_that_are_allowed(dtype, ignored, num_classes):
    label = Label(LabelRequest("map", "map", 1, None, num_classes, ignored), FIELDS["map"])
    values = [0, 2, 3, 254, 255] + [-1] * (dtype in ("int32", "float32"))
    values += [0.5, -0.5, np.nan] * (dtype == "float32")
    for value in values:
        known = num_classes is None or 0 <= value < num_classes or value == ignored
        picture = np.full((1, 4, 4), 1, dtype)
        picture[0, 1, 1] = value
        if known and value == np.rint(value):
            label.check_picture(picture)
        else:
            with pytest.raises(DataError, match="has the class id"):
                label.check_picture(picture)


def test_integers_are_not_rounded(monkeypatch):
    """Of uint8, `rint` computes in float16: 3 ms for each map of 512 x 512."""
    monkeypatch.setattr(np, "rint", lambda ids: pytest.fail(f"rint of {ids.dtype}"))
    label = Label(LabelRequest("map", "map", 1, None, 3, 255), FIELDS["map"])
    for dtype in (np.uint8, np.uint16):
        label.check_picture(np.array([[[0, 1, 255]]], dtype))


def test_floats_that_are_ids_are_read(data_of):
    [batch] = batches_of(data_of(["map"], map_planes=encode_planes(FLOATS)))
    assert (batch.dense["map"].numpy() == FLOATS).all()


def test_the_doctor_counts_ids_without_a_class(data_of, tmp_path):
    """A run can name one of them as `ignore_index`, the doctor has no tasks to look at."""
    ids = np.where(GREY == 7, 255, GREY % 3).astype(np.uint8)
    data_of(["map"], map_planes=encode_planes(ids))
    report = examine(tmp_path / "data", 10, "train")
    [task] = [task for task in report.tasks if task.task == "map"]
    assert task.findings[0].level == "error"
    assert "6.25 % of ids stand for no class: the task's `ignore_index`" in task.findings[0].message


def test_a_conversion_counts_what_is_no_label():
    fields = {name: FIELDS[name] for name in ("rgb", "depth", "map")}
    reader = ColumnReader(
        "rgb", {name: name for name in fields}, (), fields, None, Storage(), DatasetFiles("x")
    )
    tally = Tally(fields)
    row = {"rgb": encode_png(COLOUR), "depth": encode_png(COLOUR), "map": FLOATS - 0.9}
    sample = reader.sample("s", row, tally)
    assert sorted(sample.members) == ["rgb.png"]
    assert dict(tally.missing["depth"]) == {"3 channels": 1}
    assert dict(tally.missing["map"]) == {"values that are no class ids": 1}


def test_an_index_of_shards_with_colours_for_one_channel_is_refused(tmp_path):
    with ShardWriter(tmp_path, "train") as writer:
        writer.write("s", MEMBERS | {"depth.png": encode_png(COLOUR)})
    fields = {"rgb": {"kind": "image", "member": "rgb.png", "channels": 3}}
    fields["depth"] = {"kind": "dense_regression", "member": "depth.png"}
    with pytest.raises(DataError, match=r"sample s: depth\.png: 3 channels, field depth has 1"):
        index_shards(tmp_path, FieldMap(image="rgb", fields=fields), progress=False)
