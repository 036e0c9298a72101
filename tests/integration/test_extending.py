"""The examples of docs/extending.md, written into a package outside of the repository and run."""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys

import numpy as np
import pytest
import yaml
from PIL import Image
from safetensors import safe_open

from data_pipelines.shards.manifest import Manifest
from tests.documents import PAGES, read_page
from tests.processes import ROOT

DMTG = ("-c", "from trainer.commands.app import main; main()")
NAME = "docs/extending.md"
# The commands of the page, each of which a test below runs.
TRAIN, TRAIN_WITH_RECIPE, CONVERT, PREDICT = (
    shlex.split(line)[1:] for line in read_page(NAME).commands()
)


def written(folder):
    """Write each fenced block of the page to the file that its first line names."""
    page = PAGES[NAME].read_text()
    for name, block in re.findall(r"```\w+\n# (\S+)\n(.*?)```", page, re.DOTALL):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(block)
    (folder / "my_package" / "__init__.py").touch()
    return folder


def run(folder, *arguments, installed=False):
    """Run Python in a folder, with the examples on its path, perhaps with their entry point."""
    path = [ROOT, folder, *([folder / "installed"] if installed else [])]
    return subprocess.run(
        [sys.executable, *map(str, arguments)],
        cwd=folder,
        env={
            **os.environ,
            "PYTHONPATH": os.pathsep.join(map(str, path)),
            "OMP_NUM_THREADS": "1",
            "CUDA_VISIBLE_DEVICES": "",
        },
        capture_output=True,
        text=True,
        timeout=600,
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The package, with an entry point in the folder `installed`."""
    folder = written(tmp_path_factory.mktemp("outside"))
    info = folder / "installed" / "my_package-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: my-package\nVersion: 1.0\n")
    page = PAGES[NAME].read_text()
    (entry,) = re.findall(r'```toml\n\[project\.entry-points\."(.*?)"\]\n(.*?)```', page, re.DOTALL)
    (info / "entry_points.txt").write_text(f"[{entry[0]}]\n{entry[1].replace(chr(34), '')}")
    return folder


@pytest.fixture(scope="module")
def model(folder):
    """A model that was trained with all examples, and exported."""
    result = run(folder, *DMTG, *TRAIN)
    assert result.returncode == 0, result.stderr
    arguments = ("export", "run", "--out", "model.safetensors", "--plugin", "my_package.parts")
    result = run(folder, *DMTG, *arguments)
    assert result.returncode == 0, result.stderr
    return folder / "model.safetensors"


def test_training_uses_the_parts(folder, model):
    assert model.exists()
    records = [json.loads(line) for line in (folder / "run/metrics.jsonl").read_text().splitlines()]
    assert {"width", "wide", "brightness"} <= set(json.dumps(records).replace('"', " ").split())
    weights = [record["loss_weights"] for record in records if record["kind"] == "train"]
    assert len(weights) == 6 and all(sum(each.values()) == pytest.approx(3) for each in weights)
    assert weights[0] != weights[1]
    with safe_open(model, framework="pt") as file:
        description = json.loads(file.metadata()["dmtg"])
        weight = file.get_tensor("trunk.0.weight")
    assert description["plugins"] == {
        "my_package.two_convs": ["encoder two_convs"],
        "my_package.bilinear": ["dense decoder bilinear"],
        "my_package.log_regression": ["task kind log_regression", "metric factor"],
        "my_package.huber": ["loss my_huber"],
    }
    assert records[-1]["metrics"]["width"]["factor"] > 1
    assert description["network"]["encoder"]["options"] == {"channels": 8}
    assert description["network"]["decoder_options"] == {"init_scale": 0.5}
    assert weight.shape == (8, 3, 3, 3)


def test_loading_without_the_plug_in_names_what_to_import(folder, model):
    code = "import sys; from model.bundle import load_pruned; load_pruned(sys.argv[1])"
    result = run(folder, "-c", code, model)
    assert result.returncode == 1
    assert "needs plug-ins that are not registered: encoder two_convs of my_package.two_convs" in (
        result.stderr
    )
    assert "load_pruned(path, plugins=['my_package.two_convs', 'my_package.bilinear', " in (
        result.stderr
    )


def test_a_run_with_the_recipe_continues(folder):
    """The plug-ins are named in the configuration; the second start resumes the first."""
    arguments = (*TRAIN_WITH_RECIPE, "grouping.sharpness=2.0", "run.resume=auto",
                 "run.checkpoint_every=3")  # fmt: skip
    result = run(folder, *DMTG, *arguments)
    assert result.returncode == 0, result.stderr
    first = (folder / "lowest" / "metrics.jsonl").read_bytes()
    shutil.rmtree(folder / "lowest" / "checkpoints" / "step-000000006")
    result = run(folder, *DMTG, *arguments)
    assert result.returncode == 0, result.stderr
    assert "continuing from" in result.stderr and "step-000000003" in result.stderr
    assert (folder / "lowest" / "metrics.jsonl").read_bytes() == first
    saved = yaml.safe_load((folder / "lowest" / "config.yaml").read_text())
    assert saved["plugins"] == ["my_package.parts"]
    assert saved["grouping"]["sharpness"] == 2.0


def test_loading_with_the_plug_in(folder, model):
    assert model.exists()
    code = "import runpy; print(runpy.run_path('use.py')['model'].groups)"
    named = run(folder, "-c", code)
    assert named.returncode == 0 and "width" in named.stdout, named.stderr


def test_prediction_with_an_entry_point(folder, model):
    Image.fromarray(np.zeros((16, 16, 3), np.uint8)).save(folder / "image.png")
    assert model == folder / "model.safetensors"
    result = run(folder, *DMTG, *PREDICT[: PREDICT.index("--plugin")], installed=True)
    assert result.returncode == 0, result.stderr
    record = json.loads((folder / "pictures/image.json").read_text())
    assert set(record["attributes"]) == {"width", "wide"}


def test_conversion(folder):
    source = folder / "faces"
    source.mkdir()
    rows = ["file,split,age"]
    for number in range(5):
        Image.fromarray(np.full((8, 8, 3), 40 * number, np.uint8)).save(source / f"{number}.png")
        rows.append(f"{number}.png,{'val' if number > 3 else 'train'},{20 + number}")
    (source / "labels.csv").write_text("\n".join(rows))
    result = run(folder, *DMTG, *CONVERT, "--json")
    assert result.returncode == 0, result.stderr
    assert json.loads(result.stdout.splitlines()[-1])["samples"] == {"train": 4, "val": 1}
    manifest = Manifest.load(folder / "shards")
    assert manifest.fields["age"].mean == 21.5
    result = run(folder, *DMTG, "shards", "convert", "csv", "--root", source, "--out", "other")
    assert result.returncode == 2
    assert "converter is 'csv', must be one of celeba, taskonomy" in result.stderr
