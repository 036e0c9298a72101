"""Metrics over two processes, with fillers, against plain loops over the files of the split."""

import io
import json
import tarfile

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.metrics import accuracy_score, confusion_matrix, f1_score, jaccard_score

from data_pipelines.shards.manifest import Manifest
from model.network import MultiTaskNetwork
from tests.distributed.cells import thirty_steps
from trainer.checkpoints.checkpoint import load_checkpoint

pytestmark = pytest.mark.distributed


def cells():
    return [thirty_steps("ddp_cpu")]


def samples(root, split):
    """Key to member to bytes, straight from the tar files."""
    found = {}
    for shard in Manifest.load(root).split(split).shards:
        with tarfile.open(root / shard.name) as tar:
            for member in tar.getmembers():
                key, _, suffix = member.name.partition(".")
                found.setdefault(key, {})[suffix] = tar.extractfile(member).read()
    return found


def pixels(data):
    return np.asarray(Image.open(io.BytesIO(data))).astype(np.float64)


@pytest.fixture(scope="module")
def split(rooms):
    found = samples(rooms, "val")
    assert len(found) == 12  # in batches of 5 on 2 processes: 8 of 20 places are fillers
    return list(found.values())


@pytest.fixture(scope="module")
def run(trained):
    return trained(thirty_steps("ddp_cpu"))


@pytest.fixture(scope="module")
def found(run):
    lines = (run / "metrics.jsonl").read_text().splitlines()
    (metrics,) = [r["metrics"] for line in lines if (r := json.loads(line))["kind"] == "eval"]
    return metrics


@pytest.fixture(scope="module")
def outputs(run, split):
    """Task to the final network's outputs on the split, [B,...]."""
    checkpoint = load_checkpoint(run / "checkpoints/step-000000030")
    network = MultiTaskNetwork.from_config(checkpoint.progress.network)
    network.load_state_dict(checkpoint.state.weights)
    network.eval()
    images = torch.from_numpy(
        np.stack([pixels(s["rgb.png"]) for s in split]).astype(np.uint8).transpose(0, 3, 1, 2)
    )
    with torch.no_grad():
        values = network(images.contiguous(), network.select(network.heads))["predictions"]
    return {name: value.double().numpy() for name, value in values.items()}


def attribute(split, name):
    """Labels, and which samples have one."""
    records = [json.loads(s["attributes.json"]) if "attributes.json" in s else {} for s in split]
    has = np.array([name in record for record in records])
    assert 0 < has.sum() < len(split)  # some are missing
    return np.array([record.get(name, 0) for record in records]), has


def dense(split, name, rooms):
    member = Manifest.load(rooms).fields[name].member
    return [(n, pixels(s[member])) for n, s in enumerate(split) if member in s]


def test_binary(found, outputs, split):
    labels, has = attribute(split, "has_sphere")
    called = (outputs["has_sphere"][:, 0] > 0).astype(int)
    assert found["has_sphere"]["error"] == pytest.approx(
        1 - accuracy_score(labels[has], called[has])
    )
    f1 = f1_score(labels[has], called[has], zero_division=0.0)
    assert found["has_sphere"]["f1"] == pytest.approx(f1)


def test_multiclass(found, outputs, split):
    labels, has = attribute(split, "num_solids")
    called = outputs["num_solids"].argmax(axis=1)
    expected = 1 - accuracy_score(labels[has], called[has])
    assert found["num_solids"] == pytest.approx({"error": expected})


def test_regression(found, outputs, split, rooms):
    labels, has = attribute(split, "camera_pitch")
    field = Manifest.load(rooms).fields["camera_pitch"]
    errors = (outputs["camera_pitch"][:, 0] * field.std + field.mean - labels)[has]
    expected = {"mae": np.abs(errors).mean(), "rmse": np.sqrt((errors**2).mean())}
    assert found["camera_pitch"] == pytest.approx(expected, rel=1e-4)


def test_depth_in_metres_where_there_is_a_reading(found, outputs, split, rooms):
    errors, left = [], []
    for n, label in dense(split, "depth_zbuffer", rooms):
        valid = label < 2**13
        metres = (outputs["depth_zbuffer"][n, 0][valid] * 1000 + 1500) / 512
        true = label[valid] / 512
        errors.append(np.abs(metres - true))
        left.append(true - np.polyval(np.polyfit(metres, true, 1), metres))
    expected = {
        "mae": np.concatenate(errors).mean(),
        "aligned_rmse": np.sqrt((np.concatenate(left) ** 2).mean()),
    }
    assert found["depth_zbuffer"] == pytest.approx(expected, rel=1e-4)


def test_normals_in_degrees(found, outputs, split, rooms):
    angles, errors = [], []
    for n, label in dense(split, "normal", rooms):
        predicted = outputs["normal"][n].transpose(1, 2, 0)
        true = label / 127.5 - 1
        lengths = np.linalg.norm(predicted, axis=2) * np.linalg.norm(true, axis=2)
        cosines = (predicted * true).sum(axis=2) / lengths
        angles.append(np.degrees(np.arccos(np.clip(cosines, -1, 1))).ravel())
        errors.append(np.abs(predicted - true).ravel())
    angles = np.concatenate(angles)
    shares = {f"within_{limit:g}": (angles < limit).mean() for limit in (11.25, 22.5, 30)}
    expected = {"angle": angles.mean(), "mae": np.concatenate(errors).mean(), **shares}
    # A pixel next to a limit may fall on either side.
    assert found["normal"] == pytest.approx(expected, rel=1e-4, abs=1.5 / len(angles))


def test_segmentation(found, outputs, split, rooms):
    """Class 0, uncertain, is neither scored nor predicted."""
    labels, called = [], []
    for n, label in dense(split, "segment_semantic", rooms):
        scores = outputs["segment_semantic"][n].copy()
        scores[0] = -np.inf
        certain = label > 0
        labels.append(label[certain].astype(int))
        called.append(scores.argmax(axis=0)[certain])
    labels, called = np.concatenate(labels), np.concatenate(called)
    present = np.unique(labels)
    overlap = jaccard_score(labels, called, labels=present, average=None, zero_division=0.0).mean()
    wrong = 1 - np.trace(confusion_matrix(labels, called)) / len(labels)
    expected = {"miou": overlap, "pixel_error": wrong}
    assert found["segment_semantic"] == pytest.approx(expected, rel=1e-3)
