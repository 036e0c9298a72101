"""What is done with a run and its exported model: predict, evaluate, report."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from data_pipelines.reading.loader import eval_loader
from data_pipelines.shards.manifest import Manifest
from model.bundle import load_pruned
from trainer.errors import UserError
from trainer.report.picture import draw_report
from trainer.tasks import label_requests

TASKS = ("depth_zbuffer", "normal", "segment_semantic", "has_sphere", "num_solids", "camera_pitch")
DENSE = TASKS[:3]


@pytest.fixture
def picture(tmp_path):
    """An image of another size and shape than the model takes."""
    pixels = np.random.default_rng(0).integers(0, 256, (40, 60, 3)).astype(np.uint8)
    Image.fromarray(pixels).save(tmp_path / "room.png")
    return tmp_path / "room.png"


def test_predict_writes_a_picture_per_dense_task_and_the_attributes(model, dmtg, picture, tmp_path):
    end = dmtg("predict", model[0], picture, "--out", tmp_path / "out", "--json")
    assert end.code == 0, end.stderr
    expected = {"room.json", "room.overview.png", *(f"room.{name}.png" for name in DENSE)}
    assert {path.name for path in (tmp_path / "out").iterdir()} == expected
    for name in DENSE:
        with Image.open(tmp_path / "out" / f"room.{name}.png") as image:
            assert image.size == (60, 40) and image.mode == "RGB"
    written = json.loads((tmp_path / "out" / "room.json").read_text())
    assert json.loads(end.stdout.splitlines()[-1])["images"] == [written]
    attributes = written["attributes"]
    assert set(attributes) == set(TASKS) - set(DENSE)
    assert attributes["has_sphere"]["value"] == (attributes["has_sphere"]["probability"] >= 0.5)
    shares = attributes["num_solids"]["probabilities"]
    assert list(shares) == ["1", "2", "3", "4"] and sum(shares.values()) == pytest.approx(
        1, rel=1e-5
    )
    assert attributes["num_solids"]["value"] == max(shares, key=shares.get)


def test_predicted_attributes_are_in_natural_units(model, dmtg, picture, rooms, tmp_path):
    """The head's output, times the scale plus the mean that the manifest has for the field."""
    assert dmtg("predict", model[0], picture, "--out", tmp_path / "out").code == 0
    written = json.loads((tmp_path / "out" / "room.json").read_text())
    with Image.open(picture) as image:
        resized = np.asarray(image.resize((32, 32), Image.Resampling.BILINEAR))
    images = torch.from_numpy(resized.transpose(2, 0, 1).copy())[None]
    network = load_pruned(model[0]).network
    with torch.no_grad():
        predictions = network(images, network.select(network.heads))["predictions"]
    output = float(predictions["camera_pitch"])
    field = Manifest.load(rooms).fields["camera_pitch"]
    expected = output * field.std + field.mean
    assert written["attributes"]["camera_pitch"]["value"] == pytest.approx(expected, abs=1e-4)


def test_eval_prints_a_table_and_the_metrics_of_the_run(model, dmtg, rooms, records):
    end = dmtg("eval", model[0], "--shards", rooms, "--json")
    assert end.code == 0, end.stderr
    for word in (*TASKS, "group", "metric", "constant"):
        assert word in end.stdout
    found = json.loads(end.stdout.splitlines()[-1])
    last = [r for r in records if r["kind"] == "eval"][-1]["metrics"]
    for task, metrics in last.items():
        assert found["metrics"][task] == pytest.approx(metrics, rel=1e-4, abs=1e-9)
    groups = load_pruned(model[0]).groups
    for score in found["scores"]:
        assert score["task"] in groups[score["group"]]
        assert score["value"] == found["metrics"][score["task"]][score["metric"]]
        better = score["value"] > score["constant"] if score["higher_is_better"] else (
            score["value"] < score["constant"]
        )  # fmt: skip
        assert score["beats_constant"] == better


def test_constants_of_the_table_come_from_the_training_labels(model, dmtg, rooms):
    found = json.loads(dmtg("eval", model[0], "--shards", rooms, "--json").stdout.splitlines()[-1])
    constant = {score["task"]: score["constant"] for score in found["scores"]}

    def values(split):
        manifest = Manifest.load(rooms)
        request = label_requests(load_pruned(model[0]).tasks)
        loader = eval_loader(rooms, manifest, request, (32, 32), batch_size=7, split=split)
        found = [batch.labels["has_sphere"][batch.valid["has_sphere"]] for batch in loader]
        return torch.cat(found)

    most_frequent = float(values("train").mean() > 0.5)
    error = float((values("val") != most_frequent).float().mean())
    assert constant["has_sphere"] == pytest.approx(error)


def test_report_draws_the_run(run, dmtg, tmp_path):
    end = dmtg("report", run[0], "--out", tmp_path / "report.png", "--json")
    assert end.code == 0, end.stderr
    assert json.loads(end.stdout.splitlines()[-1]) == {"report": str(tmp_path / "report.png")}
    with Image.open(tmp_path / "report.png") as image:
        assert min(image.size) > 200 and len(np.unique(np.asarray(image))) > 10


def test_report_of_a_run_that_has_not_begun(run, tmp_path):
    (tmp_path / "config.yaml").write_text((run[0] / "config.yaml").read_text())
    with pytest.raises(UserError, match=r"metrics\.jsonl: cannot be read"):
        draw_report(tmp_path, tmp_path / "r.png")
    (tmp_path / "metrics.jsonl").write_text("")
    with pytest.raises(UserError, match=r"has no training record yet"):
        draw_report(tmp_path, tmp_path / "r.png")
    (tmp_path / "metrics.jsonl").write_text("{broken\n")
    with pytest.raises(UserError, match=r"metrics\.jsonl: Expecting"):
        draw_report(tmp_path, tmp_path / "r.png")


def test_shards_commands_write_what_they_say(dmtg, tmp_path):
    end = dmtg("shards", "rooms", "--out", tmp_path / "r", "--samples", "4", "--size", "32",
               "--val-fraction", "0.25", "--json")  # fmt: skip
    assert end.code == 0, end.stderr
    assert json.loads(end.stdout.splitlines()[-1])["samples"] == {"train": 3, "val": 1}
    assert Manifest.load(tmp_path / "r").split("train").num_samples == 3
