"""The exported file: what it says, that it is the run's model, and that it stands alone."""

import json
import shutil
from itertools import chain

import pytest
import torch
import yaml
from safetensors import safe_open

from data_pipelines.reading.loader import eval_loader
from data_pipelines.shards.manifest import Manifest
from model.bundle import load_pruned
from model.network import MultiTaskNetwork
from trainer import export
from trainer.checkpoints.checkpoint import load_checkpoint
from trainer.tasks import label_requests

TASKS = ("depth_zbuffer", "normal", "segment_semantic", "has_sphere", "num_solids", "camera_pitch")


def test_export_reports_what_it_wrote(model):
    path, report = model
    pruned = load_pruned(path)
    assert report["tasks"] == 6 and report["groups"] == len(pruned.groups) <= 3
    assert report["parameters"] == sum(p.numel() for p in pruned.parameters())
    assert report["bytes"] == path.stat().st_size and report["step"] == 40
    assert 0 <= report["max_abs_diff"] <= export.TOLERANCE
    assert [file.name for file in path.parent.iterdir()] == ["model.safetensors"]


def test_the_file_says_how_it_was_made(model, rooms):
    with safe_open(model[0], "pt") as file:
        description = json.loads(file.metadata()["dmtg"])
    metadata = description["metadata"]
    assert metadata["steps"] == metadata["step"] == 40 and metadata["seed"] == 5
    assert metadata["recipe"] == "published" and metadata["precision"] == "fp32"
    assert metadata["image_size"] == [32, 32] and metadata["image_std"] == [0.229, 0.224, 0.225]
    assert metadata["dataset"].startswith("rooms (train: 36 samples in 4 shards")
    assert metadata["data"] == Manifest.load(rooms).digest()
    assert sorted(chain(*description["groups"])) == sorted(TASKS)
    depth = next(t for t in description["network"]["tasks"] if t["name"] == "depth_zbuffer")
    assert depth["mean"] == [1500.0] and depth["scale"] == [1000.0]
    assert description["network"]["encoder"]["options"]["hidden_sizes"] == [8, 16]


def test_the_file_has_no_folder_and_no_address(unpruned, rooms, tmp_path):
    """The file is given to others."""
    path = unpruned / "config.yaml"
    tree = yaml.safe_load(path.read_text())
    tree["run"]["out"] = "/home/someone/run"
    tree["data"]["tar_urls"] = "https://someone:password@host/a.tar?sig=key"
    tree["data"]["cache_dir"] = "/home/someone/cache"
    tree["model"]["init_from"] = ["/home/someone/start.safetensors"]
    tree["log"]["tracker_options"] = {"tensorboard": {"project": "https://host/someone"}}
    path.write_text(yaml.safe_dump(tree))
    export.export_run(unpruned, tmp_path / "model.safetensors", shards=str(rooms))
    content = (tmp_path / "model.safetensors").read_bytes()
    for text in ("someone", "password", "sig=", "host", "://", str(rooms), str(tmp_path)):
        assert text.encode() not in content, text


def batches(rooms, tasks):
    manifest = Manifest.load(rooms)
    return eval_loader(rooms, manifest, label_requests(tasks), (32, 32), batch_size=5)


@pytest.fixture
def unpruned(run, tmp_path):
    """A copy of the run as it stood at step 10, with all its heads."""
    copy = shutil.copytree(run[0], tmp_path / "copy")
    for step in (20, 30, 40):
        shutil.rmtree(copy / "checkpoints" / f"step-{step:09d}")
    return copy


def test_the_exported_model_gives_the_full_models_argmax_outputs(unpruned, rooms, tmp_path):
    report = export.export_run(unpruned, tmp_path / "model.safetensors")
    assert report.step == 10
    checkpoint = load_checkpoint(unpruned / "checkpoints/step-000000010")
    full = MultiTaskNetwork.from_config(checkpoint.progress.network)
    full.load_state_dict(checkpoint.state.weights)
    full.eval()
    assert len(full.heads) > 6
    logits, alive = checkpoint.grouping["logits"], checkpoint.grouping["alive"]
    best = torch.where(alive, logits, -torch.inf).argmax(dim=1).tolist()
    pruned = load_pruned(tmp_path / "model.safetensors")
    by_branch = {b: [t for t, own in enumerate(best) if own == b] for b in sorted(set(best))}
    assert pruned.groups == [[TASKS[t] for t in own] for own in by_branch.values()]
    with torch.no_grad():
        for batch in batches(rooms, full.tasks):
            expected = full(batch.images, full.select(list(enumerate(best))))["predictions"]
            selection = pruned.network.select(pruned.network.heads)
            found = pruned.network(batch.images, selection)["predictions"]
            for name, value in expected.items():
                torch.testing.assert_close(found[name], value, rtol=1e-5, atol=1e-5)


def test_an_export_that_does_not_agree_leaves_no_file(unpruned, tmp_path, monkeypatch):
    """Also an older file of that name stays as it is."""
    out = tmp_path / "out" / "model.safetensors"
    out.parent.mkdir()
    out.write_bytes(b"older")

    def spoilt(path):
        model = load_pruned(path)
        with torch.no_grad():
            next(model.network.stacked_heads["binary_1_bce"].parameters()).add_(0.5)
        return model

    monkeypatch.setattr(export, "load_pruned", spoilt)
    with pytest.raises(ValueError, match=r"differ from the full model's by .*nothing was written"):
        export.export_run(unpruned, out)
    assert [file.name for file in out.parent.iterdir()] == ["model.safetensors"]
    assert out.read_bytes() == b"older"


def test_an_export_takes_other_shards_for_the_comparison(unpruned, digits, tmp_path):
    with pytest.raises(ValueError, match="no label field 'depth_zbuffer' in digits"):
        export.export_run(unpruned, tmp_path / "m.safetensors", shards=digits)
    assert not (tmp_path / "m.safetensors").exists()


ALONE = """
import sys
from itertools import chain, pairwise
from pathlib import Path

class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("trainer", "data_pipelines"):
            raise ImportError(f"{name} is not to be imported")

sys.meta_path.insert(0, Blocker())
import torch
from model.bundle import load_pruned
torch.save(load_pruned(sys.argv[1])(torch.load(sys.argv[2])), sys.argv[3])
"""


def test_the_model_needs_neither_the_trainer_nor_the_data(model, rooms, launcher, tmp_path):
    pruned = load_pruned(model[0])
    images = next(iter(batches(rooms, pruned.tasks))).images
    torch.save(images, tmp_path / "images.pt")
    files = [str(model[0]), str(tmp_path / "images.pt"), str(tmp_path / "found.pt")]
    end = launcher.python(ALONE, *files)
    assert end.code == 0, end.stderr
    found, expected = torch.load(tmp_path / "found.pt"), pruned(images)
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-5, atol=1e-5)
