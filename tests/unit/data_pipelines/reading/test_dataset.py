"""Samples: the stored values, requests that cannot be met, values that a field does not allow."""

import dataclasses

import numpy as np
import pytest

from data_pipelines.decode.codecs import decode, encode_json, encode_png
from data_pipelines.errors import DataError
from data_pipelines.reading.dataset import ShardDataset
from data_pipelines.reading.fields import LabelRequest
from data_pipelines.shards.manifest import Field, Manifest
from data_pipelines.shards.writer import ShardWriter
from data_pipelines.transforms import Geometry

SIZE = (8, 12)


def dataset_of(shards, requests=None, geometry=None, seed=0, split="train"):
    requests = shards.requests if requests is None else requests
    return ShardDataset(
        shards.root, shards.manifest, split, requests, geometry or Geometry(SIZE), seed
    )


def written(tmp_path, members, fields, requests, split="train"):
    """A dataset of one sample, `k`."""
    with ShardWriter(tmp_path, split) as writer:
        writer.write("k", members)
    manifest = Manifest(
        dataset="one", fields=fields, splits={split: writer.split(dict.fromkeys(fields, 1))}
    )
    return ShardDataset(tmp_path, manifest, split, requests, Geometry((4, 4)))


def test_values_are_the_stored_ones(shards, members_of):
    dataset = dataset_of(shards)
    assert len(dataset) == 37
    for number in range(37):
        sample, members = dataset[0, number], members_of(number)
        assert sample.key == f"train{number}"
        np.testing.assert_array_equal(sample.image, decode("rgb.png", members["rgb.png"]))
        has_third, has_depth = number % 5 != 4, number % 4 != 3
        assert sample.valid.tolist() == [True, True, has_third, has_depth, True]
        expected = [number / 4, (number % 3) * has_third, number % 2]
        assert sample.scalars.tolist() == expected
        assert sample.scalars.dtype == np.float32
        normal = decode("normal.png", members["normal.png"])
        np.testing.assert_array_equal(sample.dense["t_normal"], normal)
        assert ("t_depth" in sample.dense) == has_depth
        if has_depth:
            assert sample.dense["t_depth"].dtype == np.uint16
            assert np.unique(sample.dense["t_depth"]).tolist() == [300 + number]


def test_first_channels_are_taken(shards, members_of):
    dataset = dataset_of(shards, [LabelRequest("two", "normal", 2)])
    normal = decode("normal.png", members_of(1)["normal.png"])
    np.testing.assert_array_equal(dataset[0, 1].dense["two"], normal[:2])


def test_only_members_of_the_requests_are_read(shards):
    dataset = dataset_of(shards, [LabelRequest("d", "depth")])
    assert dataset.builder.members == {"rgb.png", "depth.png"}


def test_augmentation_depends_on_seed_epoch_and_id_alone(shards):
    geometry = Geometry((6, 6), crop=0.3, flip=True)
    first, again = dataset_of(shards, geometry=geometry), dataset_of(shards, geometry=geometry)
    again[0, 3]
    np.testing.assert_array_equal(first[5, 7].image, again[5, 7].image)
    np.testing.assert_array_equal(first[5, 7].dense["t_normal"], again[5, 7].dense["t_normal"])
    other_seed = dataset_of(shards, geometry=geometry, seed=1)
    assert (first[5, 7].image != first[6, 7].image).any()
    flipping = dataset_of(shards, geometry=Geometry(SIZE, flip=True))
    plain = dataset_of(shards)
    kept = [bool((flipping[0, n].image == plain[0, n].image).all()) for n in range(37)]
    assert 8 < sum(kept) < 29
    assert (first[5, 7].image != other_seed[5, 7].image).any()


def test_mirrored_normals_change_the_sign_of_x(shards, members_of):
    dataset = dataset_of(shards, geometry=Geometry(SIZE, flip=True))
    rgb, normal = (decode(name, members_of(2)[name]) for name in ("rgb.png", "normal.png"))
    mirrored = 0
    for epoch in range(20):
        sample = dataset[epoch, 2]
        if (sample.image == rgb).all():
            np.testing.assert_array_equal(sample.dense["t_normal"], normal)
            continue
        mirrored += 1
        np.testing.assert_array_equal(sample.image, rgb[..., ::-1])
        np.testing.assert_array_equal(sample.dense["t_normal"][0], 255 - normal[0, :, ::-1])
        np.testing.assert_array_equal(sample.dense["t_normal"][1:], normal[1:, :, ::-1])
    assert 3 < mirrored < 17


def test_fillers_have_the_shapes_and_no_labels(shards):
    dataset = dataset_of(shards)
    filler, real = dataset[0, -1], dataset[0, 0]
    assert filler.key == ""
    assert not filler.valid.any()
    assert filler.dense == {}
    for name in ("image", "scalars", "valid"):
        mine, other = getattr(filler, name), getattr(real, name)
        assert (mine.shape, mine.dtype) == (other.shape, other.dtype)
        assert not mine.any()


def test_grey_images_become_three_channels(tmp_path):
    grey = np.arange(16, dtype=np.uint8).reshape(4, 4)
    fields = {"rgb": Field(member="rgb.png", kind="image")}
    dataset = written(tmp_path, {"rgb.png": encode_png(grey)}, fields, [])
    np.testing.assert_array_equal(dataset[0, 0].image, np.stack([grey] * 3))


@pytest.mark.parametrize(
    ("request_", "flip", "expected"),
    [
        (
            LabelRequest("t", "nothing"),
            False,
            "task t: no label field 'nothing' in toy, allowed are depth, normal, number, parity",
        ),
        (LabelRequest("t", "rgb"), False, "task t: no label field 'rgb' in toy"),
        (
            LabelRequest("t", "unlabelled"),
            False,
            "task t: no labels in split train of toy (field unlabelled)",
        ),
        (LabelRequest("t", "normal", 4), False, "task t: channels 4, field normal has 3"),
        (LabelRequest("t", "parity", 2), False, "task t: channels 2, field parity has 1"),
        (LabelRequest("t", "depth", 0), False, "task t: channels 0, field depth has 1"),
        (
            LabelRequest("t", "side"),
            True,
            "task t: field side becomes wrong when the image is mirrored, turn flipping off",
        ),
    ],
)
def test_requests_that_cannot_be_met(shards, request_, flip, expected):
    with pytest.raises(DataError) as caught:
        dataset_of(shards, [request_], Geometry(SIZE, flip=flip))
    assert str(caught.value).startswith(expected)


def test_all_bad_requests_are_in_one_message(shards):
    requests = [LabelRequest("a", "x"), LabelRequest("b", "depth"), LabelRequest("b", "normal", 9)]
    with pytest.raises(DataError) as caught:
        dataset_of(shards, requests)
    assert [line.split(":")[0] for line in str(caught.value).splitlines()] == [
        "task a",
        "task b",
        "task b",
    ]
    assert "task b: requested more than once" in str(caught.value)


def test_an_unknown_split(shards):
    with pytest.raises(DataError, match="split 'test': toy has train, val"):
        dataset_of(shards, split="test")


IMAGE = {"rgb.png": encode_png(np.zeros((4, 4, 3), np.uint8))}
SCALARS = {
    "rgb": Field(member="rgb.png", kind="image", channels=3),
    "b": Field(member="a.json", key="b", kind="binary"),
    "m": Field(member="a.json", key="m", kind="multiclass", classes=("x", "y", "z")),
    "r": Field(member="a.json", key="r", kind="regression"),
}


@pytest.mark.parametrize(
    ("field", "value", "allowed"),
    [
        ("b", 2, "an integer from 0 to 1"),
        ("b", -1, "an integer from 0 to 1"),
        ("b", 0.5, "an integer from 0 to 1"),
        ("b", None, "an integer from 0 to 1"),
        ("m", 3, "an integer from 0 to 2"),
        ("m", "x", "an integer from 0 to 2"),
        ("r", "1", "a finite number"),
        ("r", True, "a finite number"),
        ("r", 1e39, "a finite number"),
        ("r", 10**400, "a finite number"),
    ],
)
def test_values_that_a_field_does_not_allow(tmp_path, field, value, allowed):
    members = IMAGE | {"a.json": encode_json({field: value})}
    dataset = written(tmp_path, members, SCALARS, [LabelRequest("t", field)])
    with pytest.raises(DataError) as caught:
        dataset[0, 0]
    assert str(caught.value) == (
        f"{tmp_path / 'train-000000.tar'}: sample k: field {field}: a.json entry {field!r} is "
        f"{value!r}, allowed is {allowed}"
    )


@pytest.mark.parametrize(("field", "value"), [("b", True), ("m", 2), ("r", -3), ("r", 1e38)])
def test_values_that_a_field_allows(tmp_path, field, value):
    members = IMAGE | {"a.json": encode_json({field: value})}
    dataset = written(tmp_path, members, SCALARS, [LabelRequest("t", field)])
    assert dataset[0, 0].scalars.tolist() == [np.float32(value)]


@pytest.mark.parametrize(
    ("member", "expected"),
    [
        (b"", "rgb.png: damaged PNG of 0 bytes"),
        (encode_png(np.zeros((4, 4), np.uint16)), "rgb.png is uint16 with 1 channels"),
        (None, "no member rgb.png, every sample needs its image"),
    ],
)
def test_bad_images_name_shard_and_sample(tmp_path, member, expected):
    members = {"other.png": b""} if member is None else {"rgb.png": member}
    dataset = written(tmp_path, members, {"rgb": SCALARS["rgb"]}, [])
    with pytest.raises(DataError) as caught:
        dataset[0, 0]
    assert f"{tmp_path / 'train-000000.tar'}: sample k: {expected}" in str(caught.value)


def test_a_picture_with_fewer_channels_than_the_manifest_says(tmp_path):
    fields = {
        "rgb": SCALARS["rgb"],
        "normal": Field(member="normal.png", kind="dense_regression", channels=3),
    }
    members = IMAGE | {"normal.png": encode_png(np.zeros((4, 4), np.uint8))}
    dataset = written(tmp_path, members, fields, [LabelRequest("t", "normal", 3)])
    with pytest.raises(
        DataError, match=r"sample k: field normal: normal\.png has 1 channels, task t"
    ):
        dataset[0, 0]


def test_a_missing_shard_is_named(shards, tmp_path):
    moved = dataclasses.replace(shards, root=tmp_path)
    with pytest.raises(DataError, match=r"train-000003\.tar: missing shard"):
        dataset_of(moved)[0, 36]
