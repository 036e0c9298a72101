"""The commands `dmtg shards`: their summaries, and faults as one message with exit code 2."""

import json
import sys

import datasets
import numpy as np
import pytest
from PIL import Image

from data_pipelines.shards.manifest import Manifest
from trainer.commands import app as cli


def run(monkeypatch, capsys, *arguments):
    """Exit code, standard output and standard error of a command."""
    monkeypatch.setattr(sys, "argv", ["dmtg", *map(str, arguments)])
    with pytest.raises(SystemExit) as exit_:
        cli.main()
    captured = capsys.readouterr()
    return exit_.value.code or 0, captured.out, captured.err


@pytest.fixture
def dmtg(monkeypatch, capsys):
    return lambda *arguments: run(monkeypatch, capsys, *arguments)


@pytest.fixture
def release(tmp_path):
    """Two buildings with two views each; one view lacks its depth, another its rgb."""
    root = tmp_path / "release"
    for building in ("ash", "elm"):
        for view in range(2):
            for domain, dtype in (("rgb", np.uint8), ("depth_zbuffer", np.uint16)):
                folder = root / domain / building
                folder.mkdir(parents=True, exist_ok=True)
                shape = (8, 8, 3) if domain == "rgb" else (8, 8)
                picture = Image.fromarray(np.full(shape, 9, dtype))
                picture.save(folder / f"point_0_view_{view}_domain_{domain}.png")
    (root / "depth_zbuffer" / "ash" / "point_0_view_0_domain_depth_zbuffer.png").unlink()
    (root / "rgb" / "ash" / "point_0_view_1_domain_rgb.png").unlink()
    return root


def test_taskonomy_sums_up_what_was_taken_and_left(dmtg, release, tmp_path):
    arguments = ("--root", release, "--out", tmp_path / "out", "--val-buildings", "elm")
    code, out, _ = dmtg("shards", "taskonomy", *arguments, "--json")
    assert code == 0
    assert json.loads(out.splitlines()[-1]) == {
        "out": str(tmp_path / "out"),
        "samples": {"train": 1, "val": 2},
        "skipped": {"no rgb file": 1},
        "labelled": {"rgb": {"train": 1, "val": 2}, "depth_zbuffer": {"train": 0, "val": 2}},
        "missing": {"depth_zbuffer": {"no file": 1}},
    }
    code, out, _ = dmtg("shards", "taskonomy", *arguments)
    assert code == 0
    assert "no file x 1" in out
    assert "samples: train 1, val 2" in out


@pytest.mark.parametrize(
    ("options", "fault"),
    [
        (("--val-share", "1.5"), "val_fraction: 1.5 must be at least 0 and below 1"),
        (("--tasks", "depth_zbuffer, hats"), "tasks hats: not there or not known"),
        (("--val-buildings", "oak"), "val buildings oak: not there"),
        (("--splits", "nowhere.csv"), "nowhere.csv: cannot be read"),
    ],
)
def test_refused_arguments_are_one_message(dmtg, release, tmp_path, options, fault):
    code, _, err = dmtg("shards", "taskonomy", "--root", release, "--out", tmp_path / "o", *options)
    assert code == 2
    assert fault in err
    assert "Traceback" not in err


def test_celeba(dmtg, tmp_path):
    (tmp_path / "img_align_celeba").mkdir()
    Image.new("RGB", (6, 8)).save(tmp_path / "img_align_celeba" / "000001.jpg")
    (tmp_path / "list_attr_celeba.txt").write_text("1\nBald Young\n000001.jpg -1 1\n")
    (tmp_path / "list_eval_partition.txt").write_text("000001.jpg 0\n")
    code, out, _ = dmtg(
        "shards", "celeba", "--root", tmp_path, "--out", tmp_path / "out", "--size", 4,
        "--tasks", "Young", "--portable", "--json",
    )  # fmt: skip
    assert code == 0
    assert json.loads(out.splitlines()[-1])["labelled"] == {
        "rgb": {"train": 1},
        "Young": {"train": 1},
    }
    assert Manifest.load(tmp_path / "out").fields["rgb"].member == "rgb.png"


def test_huggingface_and_index(dmtg, tmp_path):
    features = datasets.Features({"photo": datasets.Image(), "age": datasets.Value("float64")})
    rows = [{"photo": Image.new("RGB", (6, 8)), "age": float(n)} for n in range(3)]
    (tmp_path / "source").mkdir()
    datasets.Dataset.from_list(rows, features=features).to_parquet(tmp_path / "source/a.parquet")
    mapping = tmp_path / "map.yaml"
    mapping.write_text(
        "image: photo\nfields: {photo: {kind: image}, age: {kind: regression, mean: 1, std: 2}}"
    )
    code, out, err = dmtg(
        "shards", "huggingface", "--dataset", tmp_path / "source", "--map", mapping,
        "--out", tmp_path / "out", "--json",
    )  # fmt: skip
    assert code == 0, err
    assert json.loads(out.splitlines()[-1])["samples"] == {"train": 3}
    assert Manifest.load(tmp_path / "out").fields["age"].std == 2
    (tmp_path / "out" / "manifest.json").unlink()
    mapping.write_text(
        "image: photo\nfields: {photo: {member: photo.jpg, kind: image},"
        " age: {member: labels.json, key: age, kind: regression}}"
    )
    code, out, err = dmtg("shards", "index", tmp_path / "out", "--map", mapping, "--json")
    assert code == 0, err
    assert json.loads(out.splitlines()[-1])["labelled"]["age"] == {"train": 3}
    assert Manifest.load(tmp_path / "out").fields["age"].mean == 1
    code, _, err = dmtg("shards", "index", tmp_path / "out", "--map", mapping)
    assert code == 2
    assert "is already there" in err


@pytest.mark.parametrize(("flag", "suffix"), [((), "jpg"), (("--portable",), "png")])
def test_digits_and_rooms_take_the_format(dmtg, tmp_path, flag, suffix):
    arguments = ("--samples", 2, "--size", 32, "--val-fraction", 0, "--json", *flag)
    code, out, _ = dmtg("shards", "rooms", "--out", tmp_path / "rooms", *arguments)
    assert code == 0
    assert json.loads(out.splitlines()[-1])["samples"] == {"train": 2}
    assert Manifest.load(tmp_path / "rooms").fields["rgb"].member == f"rgb.{suffix}"
    code, _, err = dmtg("shards", "rooms", "--out", tmp_path / "other", "--size", 4)
    assert (code, "size is 4, must be at least 32 pixels" in err) == (2, True)


def test_icons(dmtg, tmp_path):
    out = tmp_path / "icons"
    options = ("--out", out, "--size", 16, "--limit", 3)
    code, text, err = dmtg("shards", "icons", *options, "--json")
    assert code == 0, err
    assert json.loads(text.splitlines()[-1]) == {
        "out": str(out), "samples": {"train": 3, "val": 3, "test": 3}, "tasks": 103,
    }  # fmt: skip
    code, _, err = dmtg("shards", "icons", *options)
    assert (code, "a data set is already here" in err) == (2, True)
    code, text, _ = dmtg("shards", "icons", "--help")
    assert code == 0 and "103 binary tasks" in " ".join(text.split())


def test_icons_without_the_package_that_draws(dmtg, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "resvg_py", None)
    code, _, err = dmtg("shards", "icons", "--out", tmp_path / "icons")
    assert code == 2 and not (tmp_path / "icons").exists()
    (line,) = err.splitlines()
    assert "needs the package resvg_py" in line and "pip install resvg-py" in line
