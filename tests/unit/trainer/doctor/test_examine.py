"""The doctor on shards: reading, the verdict, the sheet, the command and its exit codes."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from data_pipelines.convert.options import ConversionOptions
from data_pipelines.convert.taskonomy.buildings import BuildingSplits
from data_pipelines.convert.taskonomy.converter import write_taskonomy
from data_pipelines.decode.codecs import encode_json, encode_png
from data_pipelines.errors import DataError
from data_pipelines.shards.manifest import Field, Manifest
from data_pipelines.shards.writer import ShardWriter
from trainer.commands.app import app
from trainer.doctor.examine import examine

VIEWS = Path(__file__).resolve().parents[4] / ".." / "shared" / "data" / "taskonomy_sample"
needs_views = pytest.mark.skipif(not VIEWS.is_dir(), reason=f"no views in {VIEWS}")
FIELDS = {
    "rgb": Field(member="rgb.png", kind="image", channels=3),
    "depth_zbuffer": Field(member="depth.png", kind="dense_regression"),
    "keypoints3d": Field(member="key.png", kind="dense_regression"),
    "hat": Field(member="a.json", key="hat", kind="binary"),
    "weight": Field(member="a.json", key="weight", kind="regression"),
}


def sample(number):
    rng = np.random.default_rng(number)
    return {
        "rgb.png": encode_png(rng.integers(0, 256, (10, 12, 3)).astype(np.uint8)),
        "depth.png": encode_png(rng.integers(500, 5000, (10, 12)).astype(np.uint16)),
        "a.json": encode_json({"hat": int(rng.integers(2)), "weight": float(rng.normal())}),
    }


def written(root, samples=20, change=None):
    """A split of samples; `change` may alter the members of each."""
    labelled = dict.fromkeys(FIELDS, 0)
    with ShardWriter(root, "train") as writer:
        for number in range(samples):
            members = sample(number)
            if change is not None:
                change(number, members)
            writer.write(f"s{number}", members)
            for name, field in FIELDS.items():
                labelled[name] += field.member in members
    Manifest(dataset="toy", fields=FIELDS, splits={"train": writer.split(labelled)}).save(root)
    return root


def flatten_depth(_, members):
    members["depth.png"] = encode_png(np.full((10, 12), 900, np.uint16))


def findings_of(report, task):
    [result] = [t for t in report.tasks if t.task == task]
    return [f"{finding.level}: {finding.message}" for finding in result.findings]


def test_sound_labels(tmp_path):
    report = examine(written(tmp_path / "data"), 100, "train")
    assert (report.samples, report.read) == (20, 20)
    assert report.level == "warning"
    assert findings_of(report, "depth_zbuffer") == []
    assert findings_of(report, "hat") == []
    [message] = findings_of(report, "keypoints3d")
    assert message.startswith("warning: no label in this split")
    [depth] = [t for t in report.tasks if t.task == "depth_zbuffer"]
    assert depth.unit == "m" and 500 / 512 <= depth.low[0] < depth.high[0] <= 5000 / 512
    [hat] = [t for t in report.tasks if t.task == "hat"]
    assert sum(hat.shares.values()) == pytest.approx(1) and set(hat.shares) == {"0", "1"}


def test_flattened_labels_are_a_fault(tmp_path):
    report = examine(written(tmp_path / "data", change=flatten_depth), 100, "train")
    assert report.level == "error"
    [message] = findings_of(report, "depth_zbuffer")
    assert message == "error: flattened: one value (900) in all 20 labels"


def test_damaged_samples_are_counted_and_named(tmp_path):
    def damage(number, members):
        if number % 5 == 3:
            members["depth.png"] = members["depth.png"][:100]

    report = examine(written(tmp_path / "data", change=damage), 100, "train")
    assert report.read == 16 and report.level == "error"
    [finding] = report.findings
    assert finding.message.startswith("4 of 20 samples are damaged, first: ")
    assert "sample s3: depth.png: damaged PNG" in finding.message


def test_labels_of_two_types_are_a_fault(tmp_path):
    def narrow(number, members):
        if number == 7:
            members["depth.png"] = encode_png(np.full((10, 12), 200, np.uint8))

    report = examine(written(tmp_path / "data", change=narrow), 100, "train", tmp_path / "s.png")
    assert "error: stored in several types: uint16, uint8" in findings_of(report, "depth_zbuffer")


def test_nothing_readable(tmp_path):
    def damage(_, members):
        members["rgb.png"] = b"no picture"

    with pytest.raises(DataError, match=r"none of 20 samples could be read: .*rgb\.png: damaged"):
        examine(written(tmp_path / "data", change=damage), 100, "train")


def test_samples_are_spread_over_the_split(tmp_path):
    def late(number, members):
        if number >= 10:
            flatten_depth(number, members)

    report = examine(written(tmp_path / "data", change=late), 4, "train")
    assert report.read == 4
    [depth] = [t for t in report.tasks if t.task == "depth_zbuffer"]
    assert depth.low[0] < 900 / 512 < depth.high[0]


def test_sheet_shows_labels_gaps_and_invalid_pixels(tmp_path):
    def change(number, members):
        if number % 2:
            del members["depth.png"]
        else:
            label = np.full((10, 12), 65535, np.uint16)
            label[:, :6] = np.arange(60).reshape(10, 6) + 900
            members["depth.png"] = encode_png(label)

    root = written(tmp_path / "data", samples=8, change=change)
    examine(root, 8, "train", tmp_path / "deep" / "sheet.png")
    sheet = np.asarray(Image.open(tmp_path / "deep" / "sheet.png"))
    cell, left, top, down = 160, 6 + 166, 22, 160 + 22
    first = sheet[top : top + cell, left : left + cell]
    assert not first[:, 90:].any()  # no reading: black
    assert first[:, :70].std() > 20  # a picture
    second = sheet[top + down : top + down + cell, left : left + cell]
    assert (second[0] == 235).all()  # missing
    with Image.open(tmp_path / "deep" / "sheet.png") as image:
        rgb = np.asarray(image)[top : top + cell, 6 : 6 + cell]
    assert rgb.std() > 20


def run(*arguments):
    return CliRunner().invoke(app, ["doctor", *map(str, arguments)])


def test_command(tmp_path):
    good, bad = written(tmp_path / "good"), written(tmp_path / "bad", change=flatten_depth)
    result = run(good, "--out", tmp_path / "good.png", "--json", "--samples", 7)
    assert result.exit_code == 0
    record = json.loads(result.stdout.splitlines()[-1])
    assert (record["read"], record["level"]) == (7, "warning")
    assert [task["task"] for task in record["tasks"]] == list(FIELDS)[1:]
    assert (tmp_path / "good.png").is_file()
    result = run(bad, "--out", tmp_path / "bad.png")
    assert result.exit_code == 1
    assert "flattened" in result.stdout and "20 of 20 samples of train read: error" in result.stdout


def test_nothing_is_written_unless_it_is_asked_for(tmp_path, monkeypatch):
    good = written(tmp_path / "good")
    monkeypatch.chdir(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    result = run(good, "--samples", 7)
    assert result.exit_code == 0 and "sheet" not in result.stdout
    assert sorted(tmp_path.rglob("*")) == before


@needs_views
def test_real_views(tmp_path):
    """Three of them count depth in other units, beyond the release's limit; nothing else is odd."""
    options = ConversionOptions(image_size=128, progress=False)
    write_taskonomy(VIEWS, tmp_path / "data", BuildingSplits(val_fraction=0), options)
    report = examine(tmp_path / "data", 100, "train", tmp_path / "sheet.png")
    assert report.read == 4 and report.findings == ()
    assert findings_of(report, "depth_zbuffer") == ["warning: 2 of 4 labels have no valid pixel"]
    assert {t.task for t in report.tasks if t.level != "ok"} == {"depth_zbuffer"}
    labelled = {t.task: t.labelled for t in report.tasks}
    assert labelled["normal"] == 4 and labelled["keypoints2d"] == 1
