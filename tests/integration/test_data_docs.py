"""Every example of docs/data.md: its mapping files and commands, in the page's order."""

import io
import json
import re
import runpy
import shlex
import sys
import tarfile

import datasets
import numpy as np
import pytest
import yaml
from PIL import Image

from data_pipelines.shards.manifest import Manifest
from tests.documents import PAGES, read_page
from tests.faces import NUM_ROWS, label_row, picture, write_table
from tests.servers import FileServer
from trainer.commands import app as cli
from trainer.config.loading import load_config

PAGE = PAGES["docs/data.md"].read_text()
COMMANDS = read_page("docs/data.md").commands()


def write_products(folder, url):
    rows = [
        {"url": f"{url}/{n:04d}.jpg", "sold": n % 2 == 0, "price": n + 0.5} for n in range(NUM_ROWS)
    ]
    (folder / "products.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def write_pets(folder):
    features = datasets.Features(
        {
            "image": datasets.Image(),
            "species": datasets.ClassLabel(names=["cat", "dog"]),
            "adult": datasets.Value("string"),
            "weight": datasets.Value("float32"),
            "owner": datasets.Value("string"),
        }
    )
    rows = [
        {
            "image": picture(n),
            "species": n % 2,
            "adult": ("yes", "no", "unknown")[n % 3],
            "weight": n / 2,
            "owner": f"owner {n // 5}",
        }
        for n in range(NUM_ROWS)
    ]
    (folder / "pets").mkdir()
    table = datasets.Dataset.from_list(rows, features=features)
    table.to_parquet(str(folder / "pets" / "train.parquet"))


def write_scans(folder):
    (folder / "scans").mkdir()
    for name, numbers in (("scans-train-000000", range(20)), ("scans-val-000000", range(20, 25))):
        with tarfile.open(folder / "scans" / f"{name}.tar", "w") as tar:
            for number in numbers:
                add_scan(tar, number)


def add_scan(tar, number):
    photo, outline = io.BytesIO(), io.BytesIO()
    picture(number).save(photo, "JPEG")
    Image.fromarray(np.resize(np.uint8([0, 1]), (8, 12))).save(outline, "PNG")
    record = {"healthy": ("yes", "no")[number % 2], "dose": "none" if number % 4 else number / 4}
    members = {
        "jpg": photo.getvalue(),
        "cls": str(number % 3).encode(),
        "json": json.dumps(record).encode(),
        "seg.png": outline.getvalue(),
    }
    for suffix, data in members.items():
        info = tarfile.TarInfo(f"{number:03d}.{suffix}")
        info.size = len(data)
        tar.addfile(info, io.BytesIO(data))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The sources, and the page's files under the names in their first lines."""
    pytest.importorskip("aiohttp", reason="fsspec speaks HTTP through aiohttp")
    folder = tmp_path_factory.mktemp("data")
    for name, block in re.findall(r"```(?:yaml|python)\n# (\S+)\n(.*?)```", PAGE, re.DOTALL):
        (folder / name).write_text(block)
    write_table(folder)
    write_pets(folder)
    write_scans(folder)
    with FileServer(folder / "photos") as server:
        write_products(folder, server.url)
        yield folder
        server.shutdown()


@pytest.fixture
def dmtg(folder, monkeypatch, capsys):
    def run(command):
        monkeypatch.chdir(folder)
        monkeypatch.setattr(sys, "argv", shlex.split(command))
        with pytest.raises(SystemExit) as exit_:
            cli.main()
        captured = capsys.readouterr()
        assert not exit_.value.code, captured.out + captured.err
        return captured.out

    return run


def test_the_page_has_an_example_of_every_source():
    sources = {command.split()[2] for command in COMMANDS if command.startswith("dmtg shards")}
    assert sources == {"csv", "huggingface", "index", "mix"}


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command(dmtg, folder, command):
    out = dmtg(command)
    words = shlex.split(command)
    if words[1] in ("doctor", "init"):
        return
    manifest = Manifest.load(
        folder / (words[words.index("--out") + 1] if "--out" in words else words[3])
    )
    num_samples = sum(split.num_samples for split in manifest.splits.values())
    assert num_samples == {"index": 25, "mix": 2 * NUM_ROWS}.get(words[2], NUM_ROWS)
    assert not manifest.conversion.skipped
    if words[2] == "mix":
        shown = re.search(r"```text\n( *source .*?)```", PAGE, re.DOTALL)[1]
        printed = [line.strip() for line in out.splitlines()]
        assert [line.strip() for line in shown.splitlines()] == printed[1:5]
    if "--group-by" in words:
        shown = re.search(r"```text\n(labels\.csv: .*?)```", PAGE, re.DOTALL)[1]
        lines = [line.rstrip() for line in out.splitlines()]
        assert [line.rstrip() for line in shown.splitlines()] == lines[: len(shown.splitlines())]


def test_the_labels_of_the_examples(folder):
    """Against the sources; the commands above have written them."""
    faces = Manifest.load(folder / "data" / "faces-corrected")
    assert list(faces.fields) == ["photo", "smiling", "wears_glasses", "mood", "age", "face_parts"]
    assert not faces.conversion.missing  # `unknown` is no label by the mapping
    ages = sum(split.labelled["age"] for split in faces.splits.values())
    assert ages == sum(label_row(n)["age"] not in ("", "unknown") for n in range(NUM_ROWS))
    pets = Manifest.load(folder / "data" / "pets")
    assert {name: split.num_samples for name, split in pets.splits.items()} == {
        "train": 48, "val": 6, "test": 6,
    }  # fmt: skip
    assert pets.split("train").class_counts == {"species": (24, 24), "adult": (16, 16)}
    assert Manifest.load(folder / "data" / "pets-share").split("val").num_samples in range(10, 15)
    scans = Manifest.load(folder / "scans")
    assert scans.split("train").class_counts == {"organ": (7, 7, 6), "healthy": (10, 10)}
    assert scans.split("train").labelled["dose"] == 20
    assert Manifest.load(folder / "data" / "products").fields["sold"].kind == "binary"


def test_the_example_of_a_mix(folder):
    """Only the images of a source have its labels."""
    mix = Manifest.load(folder / "data" / "both")
    assert list(mix.sources) == ["faces", "animals"]
    assert mix.split("train").labelled["animals_species"] == 48
    assert mix.split("test").labelled["mood"] == 0
    start = load_config(folder / "both.yaml", [])
    assert {"mood", "animals_species"} <= set(start.tasks.names)
    weights = yaml.safe_load(re.search(r"```yaml\n(data:\n  mix:.*?)```", PAGE, re.DOTALL)[1])
    assert set(weights["data"]["mix"]) == set(mix.sources)


def test_another_reader(folder, monkeypatch, capsys):
    monkeypatch.chdir(folder)
    runpy.run_path("read_shards.py")
    lines = capsys.readouterr().out.splitlines()
    manifest = Manifest.load(folder / "data" / "portable")
    assert len(lines) == manifest.split("train").num_samples
    key, shape, labels = re.fullmatch(r"(\S+) (\(.*\)) (\{.*\})", lines[0]).groups()
    assert shape == "(8, 12, 3)"
    row = label_row(int(key))
    assert json.loads(labels).get("smiling") == {"1.0": 1, "0.0": 0, "": None}[row["smiling"]]
