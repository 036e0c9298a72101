"""Prediction of photos in batches: formats, names, labels beside them, and what ends it."""

import io
import json
import tarfile
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
from trainer.errors import UserError
from trainer.prediction import photos as photos_module
from trainer.prediction.predict import Options, predict_files, predict_shards

TASKS = [TaskSpec("depth", "dense_regression"), TaskSpec("age", "regression")]
PIXELS = np.random.default_rng(0).integers(0, 256, (40, 1300, 3)).astype(np.uint8)


def saved(folder, tasks):
    torch.manual_seed(0)
    encoder = build_encoder("residual64", 1, image_size=(16, 16), options={"channels": 4})
    heads = [(task, 0) for task in range(len(tasks))]
    network = MultiTaskNetwork(tasks, encoder, (16, 16), heads=heads, dense_widths=(8,))
    save_bundle(folder / "model.safetensors", network, {})
    return folder / "model.safetensors"


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return saved(tmp_path_factory.mktemp("model"), TASKS)


@pytest.fixture
def photos(tmp_path):
    for name in "abc":
        Image.fromarray(PIXELS).save(tmp_path / f"{name}.png")
    return [tmp_path / f"{name}.png" for name in "abc"]


def predict_images(model, images, out, **options):
    return list(predict_files(model, images, out, Options(**options)))


@pytest.mark.parametrize("batch_size", [1, 2])
def test_one_photo_at_a_time_is_in_memory(model, photos, tmp_path, monkeypatch, batch_size):
    read = []

    def record(name, path):
        assert not any(reference() is not None for reference in read)
        complete = len(read) // batch_size * batch_size
        assert len(list((tmp_path / "out").iterdir())) == 3 * complete
        picture = read_photo(name, path)
        read.append(weakref.ref(picture))
        return picture

    monkeypatch.setattr(photos_module, "read_photo", record)
    records = predict_images(model, photos, tmp_path / "out", batch_size=batch_size)
    assert len(records) == len(read) == 3


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
    # One by one: the rows of a batch are rounded differently.
    first, second = predict_images(model, paths, tmp_path / "out", batch_size=1)
    assert first["attributes"] == second["attributes"]
    for name in ("upright", "turned"):
        with Image.open(tmp_path / "out" / f"{name}.depth.png") as image:
            assert image.size == (60, 40)
        assert json.loads((tmp_path / "out" / f"{name}.json").read_text())["attributes"]


def test_photos_of_any_size_and_mode(model, tmp_path):
    """A map has the size of its photo, in each format; grey stands for three equal colours."""
    grey = PIXELS[:, :50, 0]
    Image.fromarray(grey).save(tmp_path / "grey.png")
    Image.fromarray(np.repeat(grey[..., None], 3, axis=2)).save(tmp_path / "rgb.bmp")
    Image.fromarray(grey).convert("P").save(tmp_path / "palette.gif")
    Image.fromarray(grey.astype(np.uint16) * 257).save(tmp_path / "deep.png")
    Image.fromarray(PIXELS[:3, :2]).convert("CMYK").save(tmp_path / "tiny.jpg")
    records = predict_images(model, [tmp_path], tmp_path / "out", formats=("npy", "png"))
    by_name = {record["image"].rpartition("/")[2]: record for record in records}
    assert len(by_name) == 5
    values = by_name["grey.png"]["attributes"]["age"]["value"]
    for name in ("rgb.bmp", "palette.gif", "deep.png"):
        assert by_name[name]["attributes"]["age"]["value"] == pytest.approx(values, abs=1e-6), name
    maps = np.load(tmp_path / "out" / "grey.depth.npy")
    assert maps.shape == (1, 40, 50) and maps.dtype == np.float32
    assert np.load(tmp_path / "out" / "tiny.depth.npy").shape == (1, 3, 2)
    with Image.open(tmp_path / "out" / "tiny.depth.png") as picture:
        assert picture.size == (2, 3)


def predicted_alone_and(model, photos, out, **options):
    """Records of different photos, one by one and in another way."""
    for number, path in enumerate(photos):
        Image.fromarray(PIXELS[:, number * 100 : number * 100 + 90]).save(path)
    alone = predict_images(model, photos, out / "1", batch_size=1, overview=False)
    other = predict_images(model, photos, out / "2", overview=False, **options)
    assert [r["image"] for r in alone] == [r["image"] for r in other] == list(map(str, photos))
    return [[r["attributes"]["age"]["value"] for r in records] for records in (alone, other)]


def test_batches_change_no_prediction(model, photos, tmp_path):
    alone, together = predicted_alone_and(model, photos, tmp_path, batch_size=2)
    assert together == pytest.approx(alone, abs=1e-5)
    assert len({round(age, 4) for age in alone}) == 3  # rows that were exchanged would show


@pytest.mark.slow
def test_processes_change_no_prediction(model, photos, tmp_path):
    alone, read_by_two = predicted_alone_and(model, photos, tmp_path, batch_size=1, workers=2)
    assert read_by_two == alone


def test_json_lines(model, photos, tmp_path):
    options = {"formats": ("jsonl",), "batch_size": 2}
    records = predict_images(model, photos, tmp_path / "out", **options)
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["predictions.jsonl"]
    lines = (tmp_path / "out" / "predictions.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == records
    assert records[0]["attributes"].keys() == {"age"} and "files" not in records[0]
    with pytest.raises(UserError, match=r"predictions\.jsonl: exists and would be replaced"):
        predict_images(model, photos, tmp_path / "out", **options)


def test_json_lines_appear_only_when_they_are_complete(model, photos, tmp_path):
    photos[2].write_bytes(photos[2].read_bytes()[:5000])
    with pytest.raises(DataError, match=r"c\.png: .*--on-error skip goes on without it"):
        predict_images(model, photos, tmp_path / "out", formats=("jsonl",))
    assert list((tmp_path / "out").iterdir()) == []


def test_a_photo_that_cannot_be_read_is_left_out_where_that_is_wanted(model, photos, tmp_path):
    photos[0].write_bytes(photos[0].read_bytes()[:5000])
    photos[1].write_text("no picture")
    options = {"formats": ("jsonl", "npy"), "on_error": "skip", "batch_size": 2}
    records = predict_images(model, photos, tmp_path / "out", **options)
    assert ["error" in record for record in records] == [True, True, False]
    assert "a.png: cannot be read" in records[0]["error"]
    lines = (tmp_path / "out" / "predictions.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == records
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names == {"predictions.jsonl", "c.depth.npy"}
    assert records[2]["files"] == {"depth": ["c.depth.npy"]}


def test_only_some_tasks(model, photos, tmp_path):
    (record,) = predict_images(model, photos[:1], tmp_path / "out", tasks=["age"])
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"a.json", "a.overview.png"}
    (both,) = predict_images(model, photos[:1], tmp_path / "both", overview=False)
    assert record["attributes"] == both["attributes"]
    assert not (tmp_path / "both" / "a.overview.png").exists()
    with pytest.raises(UserError, match=r"--format: found 'jsonl' alone, which holds no maps"):
        predict_images(model, photos, tmp_path / "c", tasks=["depth"], formats=("jsonl",))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"formats": ("svg",)}, "--format: found 'svg'; allowed: png, npy, jsonl"),
        ({"device": "nowhere"}, "--device: found 'nowhere', which cannot be used"),
    ],
)
def test_options_that_cannot_be_used(model, photos, tmp_path, options, message):
    with pytest.raises(UserError, match=message):
        predict_images(model, photos, tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()


ROOM_TASKS = (
    TaskSpec("depth_zbuffer", "dense_regression", mean=(1500.0,), scale=(1000.0,),
             valid_below=8192.0, unit="m", unit_scale=1 / 512, display="depth"),
    TaskSpec("has_sphere", "binary"),
    TaskSpec("num_solids", "multiclass", channels=4, classes=("1", "2", "3", "4")),
    TaskSpec("mood", "regression"),
)  # fmt: skip


def test_labels_of_shards_are_beside_the_predictions(rooms, tmp_path, monkeypatch, caplog):
    model = saved(tmp_path, ROOM_TASKS)
    drawn = []
    monkeypatch.setattr(
        "trainer.prediction.outputs.draw_overview", lambda *arguments: drawn.append(arguments)
    )
    records = list(predict_shards(model, str(rooms), tmp_path / "out", Options(), limit=5))
    assert len(records) == len(drawn) == 5
    assert "no labels are shown of task mood" in caplog.text
    shards = sorted(rooms.glob("val-*.tar"))
    with tarfile.open(shards[0]) as tar:
        files = {member.name: tar.extractfile(member).read() for member in tar.getmembers()}
    for record, (_, photo, _, _, labels, pictures) in zip(records, drawn, strict=True):
        key = record["image"]
        stored = json.loads(files[f"{key}.attributes.json"])
        expected = {}
        if "has_sphere" in stored:
            expected["has_sphere"] = bool(stored["has_sphere"])
        if "num_solids" in stored:
            expected["num_solids"] = str(stored["num_solids"] + 1)
        assert record.get("labels", {}) == labels == expected
        assert ("depth_zbuffer" in pictures) == (f"{key}.depth_zbuffer.png" in files)
        image = np.asarray(Image.open(io.BytesIO(files[f"{key}.rgb.png"])))
        assert np.array_equal(photo, image)
    assert any(record.get("labels") for record in records)
    with Image.open(tmp_path / "out" / f"{records[0]['image']}.depth_zbuffer.png") as picture:
        assert picture.size == (32, 32)


def test_the_prediction_of_a_sample_is_that_of_its_picture(rooms, tmp_path):
    model = saved(tmp_path, ROOM_TASKS[1:3])
    options = Options(formats=("jsonl",))
    (record,) = predict_shards(model, str(rooms), tmp_path / "out", options, limit=1)
    with tarfile.open(sorted(rooms.glob("val-*.tar"))[0]) as tar:
        data = tar.extractfile(f"{record['image']}.rgb.png").read()
    (tmp_path / "photo.png").write_bytes(data)
    (other,) = predict_images(model, [tmp_path / "photo.png"], tmp_path / "other")
    assert other["attributes"] == record["attributes"]
