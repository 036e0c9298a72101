"""Prediction of photos: each is decoded when its turn comes, upright, and then forgotten."""

import json
import weakref

import numpy as np
import pytest
import torch
from PIL import Image

from data_pipelines.errors import DataError
from dmtg.pictures import read_photo
from model.bundle import save_bundle
from model.encoders import build_encoder
from model.network import MultiTaskNetwork
from model.tasks.spec import TaskSpec
from trainer import prediction
from trainer.prediction import predict_images

TASKS = [TaskSpec("depth", "dense_regression"), TaskSpec("age", "regression")]
PIXELS = np.random.default_rng(0).integers(0, 256, (40, 1300, 3)).astype(np.uint8)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    torch.manual_seed(0)
    encoder = build_encoder("residual64", 1, image_size=(16, 16), options={"channels": 4})
    heads = [(0, 0), (1, 0)]
    network = MultiTaskNetwork(TASKS, encoder, (16, 16), heads=heads, dense_widths=(8,))
    path = tmp_path_factory.mktemp("model") / "model.safetensors"
    save_bundle(path, network, {})
    return path


@pytest.fixture
def photos(tmp_path):
    for name in "abc":
        Image.fromarray(PIXELS).save(tmp_path / f"{name}.png")
    return [tmp_path / f"{name}.png" for name in "abc"]


def test_one_photo_at_a_time_is_in_memory(model, photos, tmp_path, monkeypatch):
    read = []

    def record(name, path):
        assert not any(reference() is not None for reference in read)
        assert len(list((tmp_path / "out").iterdir())) == 3 * len(read)
        picture = read_photo(name, path)
        read.append(weakref.ref(picture))
        return picture

    monkeypatch.setattr(prediction, "read_photo", record)
    assert len(predict_images(model, photos, tmp_path / "out")) == len(read) == 3


def test_a_photo_that_ends_early_stops_with_its_name(model, photos, tmp_path):
    photos[1].write_bytes(photos[1].read_bytes()[:5000])
    with pytest.raises(DataError, match=r"b\.png: cannot be read as JPEG, PNG.*truncated"):
        predict_images(model, photos, tmp_path / "out")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "a.depth.png", "a.json", "a.overview.png"
    ]  # fmt: skip


def test_a_turned_photo_is_predicted_as_the_upright_one(model, tmp_path):
    upright = Image.fromarray(PIXELS[:, :60])
    exif = Image.Exif()
    exif[0x112] = 6
    upright.save(tmp_path / "upright.png")
    upright.rotate(90, expand=True).save(tmp_path / "turned.png", exif=exif)
    paths = [tmp_path / "upright.png", tmp_path / "turned.png"]
    first, second = predict_images(model, paths, tmp_path / "out")
    assert first["attributes"] == second["attributes"]
    for name in ("upright", "turned"):
        with Image.open(tmp_path / "out" / f"{name}.depth.png") as image:
            assert image.size == (60, 40)
        assert json.loads((tmp_path / "out" / f"{name}.json").read_text())["attributes"]
