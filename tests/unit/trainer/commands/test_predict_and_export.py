"""`dmtg predict`, `export` and `push` as they are typed: what is printed, and the exit code."""

import json
import sys

import numpy as np
import pytest
from PIL import Image

from tests.unit.trainer.deployment.conftest import write_model
from trainer.commands import app as cli


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return write_model(tmp_path_factory.mktemp("model") / "model.safetensors", channels=8)


@pytest.fixture
def photos(tmp_path):
    for number, name in enumerate(("a/1.png", "b/1.png")):
        path = tmp_path / "photos" / name
        path.parent.mkdir(parents=True)
        Image.fromarray(np.full((9, 7, 3), 50 * number, np.uint8)).save(path)
    return tmp_path / "photos"


@pytest.fixture
def dmtg(monkeypatch, capsys, tmp_path):
    """Run a command in the test's folder: exit code, standard output, errors."""

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["dmtg", *map(str, arguments)])
        with pytest.raises(SystemExit) as end:
            cli.main()
        printed = capsys.readouterr()
        return end.value.code or 0, printed.out, printed.err

    monkeypatch.chdir(tmp_path)
    return run


def test_a_folder_is_predicted(dmtg, model, photos):
    code, out, err = dmtg("predict", model, "photos", "--out", "out", "--no-overview")
    assert code == 0 and out == "images: 2\nout: out\n", err
    assert "it/s" not in err  # no progress bar where there is no terminal
    assert (photos.parent / "out" / "a" / "1.json").is_file()
    assert (photos.parent / "out" / "b" / "1.depth.png").is_file()


def test_photos_that_are_left_out_are_named_and_the_exit_code_is_1(dmtg, model, photos):
    (photos / "a" / "1.png").write_text("no picture")
    command = ("predict", model, "photos", "--out", "out", "--format", "jsonl", "--json")
    code, out, err = dmtg(*command)
    assert code == 2 and "a/1.png: cannot be read" in err and len(err.splitlines()) == 1
    assert not (photos.parent / "out").exists()
    code, out, err = dmtg(*command, "--on-error", "skip")
    assert code == 1 and err.startswith("left out: photos/a/1.png: cannot be read")
    records = json.loads(out.splitlines()[-1])["images"]
    assert [record["image"] for record in records] == ["photos/a/1.png", "photos/b/1.png"]
    assert "error" in records[0] and records[1]["attributes"].keys() == {
        "cube", "round things", "shape", "age"
    }  # fmt: skip


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "IMAGES: none given; name files, folders, patterns, --list or --shards"),
        (("photos", "--shards", "s"), "--shards: photos of shards or in files, not both"),
        (("photos", "--limit", "3"), "--limit: allowed only with --shards"),
        (("photos", "--on-error", "go"), "--on-error: found 'go'; allowed: stop, skip"),
        (("photos", "--format", "svg"), "--format: found 'svg'; allowed: png, npy, jsonl"),
        (("photos", "--task", "ag"), "did you mean 'age'?"),
        (("nowhere",), "nowhere: no such file or folder"),
    ],
)
def test_predict_with_arguments_that_cannot_be_used(dmtg, model, photos, arguments, message):
    code, out, err = dmtg("predict", model, *arguments, "--out", "out")
    assert (code, out) == (2, "") and message in err and len(err.splitlines()) == 1
    assert not (photos.parent / "out").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--out", "m.onnx", "--format", "torch"), "a file of --format torch ends in .pt2"),
        (("--out", "m.onnx", "--preprocessing", "all"), "found 'all'; allowed: none, normalize, r"),
        (("--out", "m", "--preprocessing", "resize"), "allowed only with --format onnx or torch"),
        (("--out", "m.safetensors", "--task", "x"), "has no task 'x'"),
    ],
)
def test_export_with_arguments_that_cannot_be_used(dmtg, model, tmp_path, arguments, message):
    code, out, err = dmtg("export", model, *arguments)
    assert (code, out) == (2, "") and message in err and len(err.splitlines()) == 1
    assert list(tmp_path.iterdir()) == []


def test_a_file_of_some_tasks_with_its_card(dmtg, model, tmp_path):
    command = ("export", model, "--out", "small.safetensors", "--task", "age", "--card")
    code, out, err = dmtg(*command, "--json")
    assert code == 0, err
    report = json.loads(out.splitlines()[-1])
    assert (
        report["tasks"] == 1 and report["bytes"] == (tmp_path / "small.safetensors").stat().st_size
    )
    assert "# small\n" in (tmp_path / "README.md").read_text()
    (tmp_path / "README.md").write_text("mine")
    (tmp_path / "small.safetensors").unlink()
    code, out, err = dmtg(*command)
    assert code == 2 and "README.md exists and is no model card" in err
    assert [path.name for path in tmp_path.iterdir()] == ["README.md"]


def test_push(dmtg, hub, model):
    code, out, err = dmtg("push", model, "me/rooms", "--dry-run")
    assert code == 0 and out.splitlines()[-1] == "nothing was uploaded", err
    code, out, err = dmtg("push", model, "me/rooms", "--license", "mit")
    assert code == 0, err
    assert out.splitlines()[-1] == f"commit: {hub.url}/me/rooms/commit/{'0' * 40}"
    assert hub.repos["me/rooms"]["branches"]["main"].keys() == {"README.md", "model.safetensors"}
    code, _, err = dmtg("push", model, "me/rooms", "--also", "tflite")
    assert code == 2 and "--also: found 'tflite'; allowed: onnx, torch" in err
    code, _, err = dmtg("push", model, "me/rooms", "--preprocessing", "resize")
    assert code == 2 and "allowed only with --also onnx or torch" in err
    assert len(hub.commits) == 1
