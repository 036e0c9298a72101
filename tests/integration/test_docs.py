"""The pages for users: their commands and examples in order, each page in a folder of its own.

The folder has what a user has after `make demo`, in small: shards of 32 pixels, and configurations
of the repository that end after a few steps.
"""

import json
import shutil
from pathlib import Path

import pytest
import yaml
from PIL import Image

from data_pipelines.shards.extract import extract_images
from tests.documents import run_page
from tests.faces import write_table
from tests.processes import ROOT

# Pages, and what of the folder they make themselves.
RUN = {
    "README.md": ("runs/first", "model.safetensors"),
    "docs/compare.md": (),
    "docs/configuration.md": (),
    "docs/file_formats.md": (),
    "docs/five_minutes.md": ("runs/first",),
    "docs/monitoring.md": (),
    "docs/planning.md": (),
    "docs/python.md": ("runs/first", "model.safetensors"),
    "docs/reading_data.md": (),
    "docs/recipes.md": ("runs/digits/shards",),
    "docs/report.md": (),
    "docs/training.md": (),
}
# Of these the README has the most important commands, too.
SLOW = ("five_minutes", "monitoring", "planning", "python", "recipes", "report")
SMALL = {
    "run": {"steps": 6, "checkpoint_every": 3},
    "data": {"image_size": [32, 32], "global_batch": 8, "workers": 0},
    "optim": {"warmup_steps": 2},
    "log": {"every": 1, "trackers": []},
}


def write_configurations(folder):
    """Copy `experiments/`, with the runs for a CPU made small."""
    shutil.copytree(ROOT / "experiments", folder)
    for name in ("demo", "digits"):
        tree = yaml.safe_load((folder / f"{name}.yaml").read_text())
        for section, values in SMALL.items():
            tree[section] = {**tree.get(section, {}), **values}
        tree["pruning"]["every"] = 1
        (folder / f"{name}.yaml").write_text(yaml.safe_dump(tree))


@pytest.fixture(scope="module")
def user(tmp_path_factory, rooms, digits, dmtg):
    """The folder of a user, with a finished run and its exported model."""
    folder = tmp_path_factory.mktemp("user")
    write_configurations(folder / "experiments")
    for link, target in (("demo/shards", rooms), ("digits/shards", digits)):
        (folder / "runs" / link).parent.mkdir(parents=True)
        (folder / "runs" / link).symlink_to(target)
    for name in ("accelerate_configs", "trainer"):
        (folder / name).symlink_to(ROOT / name)
    write_table(folder)
    (image,) = extract_images(rooms, folder / "images", split="val", limit=1)
    Image.open(image).convert("RGB").save(folder / "photo.jpg")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for command in (
            ("train", "experiments/demo.yaml", "run.out=runs/first"),
            ("export", "runs/first", "--out", "model.safetensors"),
        ):
            end = dmtg(*command)
            assert end.code == 0, end.stderr
    return folder


@pytest.fixture
def here(user, tmp_path, monkeypatch, request):
    """A copy of the user's folder without what the page makes itself."""
    folder = tmp_path / "user"
    shutil.copytree(user, folder, symlinks=True)
    for name in RUN[request.getfixturevalue("name")]:
        path = folder / name
        shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
    monkeypatch.chdir(folder)
    return folder


@pytest.mark.parametrize(
    "name",
    [pytest.param(n, marks=pytest.mark.slow) if Path(n).stem in SLOW else n for n in RUN],
)
def test_a_page(name, here, dmtg, like_a_process):
    if name == "docs/report.md":
        make_comparison(here, dmtg)
    run_page(name, dmtg, like_a_process)
    expected = {
        "README.md": ("runs/first/report.html", "predictions/photo.json"),
        "docs/five_minutes.md": ("runs/first/report.html", "runs/labels/report.html", "README.md"),
        "docs/monitoring.md": ("runs/profiled/profile/rank-0-steps-2-5.json",),
        "docs/reading_data.md": ("doctor.png",),
        "docs/recipes.md": ("runs/rooms/shards/manifest.json",),
        "docs/report.md": ("both.html", "compare.html", "runs/first/report.png"),
        "docs/training.md": ("runs/digits/train/result.json", "runs/second/result.json"),
    }
    for path in expected.get(name, ()):
        assert (here / path).is_file(), path


def make_comparison(folder, dmtg):
    """A second run, and a comparison of two recipes."""
    shutil.copytree(folder / "runs" / "first", folder / "runs" / "second")
    options = ("--recipes", "evidence,multitask", "--seeds", "1", "--out", "runs/compare")
    end = dmtg("compare", "experiments/digits.yaml", *options)
    assert end.code == 0, end.stderr


def test_files_of_a_run_are_described(user):
    """docs/file_formats.md names every file of a run, and the keys of records and results."""
    page = (ROOT / "docs" / "file_formats.md").read_text()
    run = user / "runs" / "first"
    for path in run.iterdir():
        assert f"`{path.name}{'/' * path.is_dir()}`" in page or f"`{path.name}/" in page, path.name
    newest = run / "checkpoints" / (run / "checkpoints" / "latest").read_text().strip()
    for path in newest.iterdir():
        assert f"`{path.name}`" in page, path.name
    lines = (run / "metrics.jsonl").read_text() + (run / "grouping.jsonl").read_text()
    records = [json.loads(line) for line in lines.splitlines()]
    assert {"train", "eval", "prune", "probabilities"} <= {record["kind"] for record in records}
    result = json.loads((run / "result.json").read_text())
    keys = {key for record in (*records, result) for key in record}
    keys |= {record["kind"] for record in records}
    assert not [key for key in keys if f"`{key}`" not in page]
