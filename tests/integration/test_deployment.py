"""docs/deployment.md: every command and example of the page, and programs that need no dmtg."""

import json
import os
import re
import subprocess
import venv
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data_pipelines.shards.extract import extract_images
from model.bundle import load_pruned
from tests.documents import read_page, run_page
from tests.processes import ROOT

NAME = "docs/deployment.md"
SCRIPTS = {
    found[1]: block.text
    for block in read_page(NAME).blocks
    if block.language == "python" and (found := re.match(r"# (\w+\.py)\n", block.text))
}
PACKAGES = {
    "onnx_predict.py": ("onnxruntime", "pillow"),
    "torch_predict.py": ("torch", "numpy", "pillow"),
}

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def folder(run, rooms, tmp_path_factory):
    """The folder of the page: a run, photos, shards."""
    place = tmp_path_factory.mktemp("page")
    for link, target in (("runs/first", run[0]), ("data/rooms", rooms)):
        (place / link).parent.mkdir()
        (place / link).symlink_to(target)
    first, second = extract_images(rooms, place / "photos", split="val", limit=2)
    with Image.open(first) as image:
        image.resize((90, 50)).save(place / "photos" / "room.png")
    second.rename(place / "photos" / "other.png")
    first.unlink()
    return place


def test_the_page_in_order(folder, dmtg, hub, like_a_process, monkeypatch):
    monkeypatch.chdir(folder)
    printed = run_page(NAME, dmtg, like_a_process)
    assert "'probability': " in printed and "(1, 50, 90) m" in printed
    names = {path.name for path in Path("predictions").iterdir()}
    assert {"room.json", "room.overview.png", "room.normal.png", "other.json"} <= names
    with Image.open("predictions/room.normal.png") as picture:
        assert picture.size == (90, 50)
    assert np.load("arrays/room.depth_zbuffer.npy").shape == (1, 50, 90)
    lines = Path("lines/predictions.jsonl").read_text().splitlines()
    assert {json.loads(line)["image"] for line in lines} == {"photos/room.png", "photos/other.png"}
    assert len(list(Path("beside_labels").glob("*.overview.png"))) == 4
    assert {path.name.split(".", 1)[1] for path in Path("depth_only").iterdir()} == {
        "json", "depth_zbuffer.png"
    }  # fmt: skip
    files = hub.repos["me/rooms"]["branches"]["main"]
    assert files.keys() == {"README.md", "model.safetensors", "model.onnx"}
    card = files["README.md"].decode()
    assert "## Metrics" in card and "`depth_zbuffer`" in card
    assert str(folder) not in card and "apache-2.0" in card
    assert Path("README.md").read_text().startswith("---\n")


def test_the_examples_are_short():
    assert SCRIPTS.keys() == PACKAGES.keys()
    for code in SCRIPTS.values():
        statements = [line for line in code.splitlines() if line and not line.startswith("#")]
        assert len(statements) <= 15


@pytest.mark.parametrize("script", PACKAGES)
def test_an_example_in_a_fresh_environment(folder, model, dmtg, tmp_path, script):
    suffix = ".onnx" if script.startswith("onnx") else ".pt2"
    exported = tmp_path / f"model{suffix}"
    end = dmtg("export", folder / "runs" / "first", "--out", exported)
    assert end.code == 0, end.stderr
    venv.create(tmp_path / "venv", with_pip=True)
    python = str(tmp_path / "venv" / "bin" / "python")
    environment = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "PYTHONHOME")}
    install = [python, "-m", "pip", "install", "--quiet", "-c", str(ROOT / "constraints.txt")]
    subprocess.run([*install, *PACKAGES[script]], check=True, env=environment, timeout=1800)
    (tmp_path / script).write_text(SCRIPTS[script])
    photos = [str(folder / "photos" / name) for name in ("room.png", "other.png")]
    done = subprocess.run(
        [python, script, str(exported), *photos],
        cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    absent = subprocess.run(
        [python, "-c", "import model"], cwd=tmp_path, env=environment, capture_output=True
    )
    assert absent.returncode != 0, "the environment has this project"
    expected = load_pruned(model[0]).predict(photos)
    lines = dict(re.findall(r"^(\w+) [\w ]+? (\[.*|\(.*|torch.*)$", done.stdout, re.MULTILINE))
    assert lines.keys() == expected[0].keys()
    for row, prediction in enumerate(expected):
        probability = prediction["has_sphere"]["probability"]
        assert json.loads(lines["has_sphere"])[row] == pytest.approx(probability, abs=1e-4)
        shares = list(prediction["num_solids"]["probabilities"].values())
        assert json.loads(lines["num_solids"])[row] == pytest.approx(shares, abs=1e-4)
        pitch = prediction["camera_pitch"]["value"]
        assert json.loads(lines["camera_pitch"])[row] == pytest.approx(pitch, rel=1e-3, abs=1e-3)
    assert "(2, 3, 32, 32)" in lines["normal"] or "[2, 3, 32, 32]" in lines["normal"]
