"""ONNX and torch.export of every encoder, with the preprocessing that is wanted inside."""

import json

import numpy as np
import pytest
import torch

from model.bundle import load_pruned, save_bundle
from model.encoders import build_encoder
from model.kinds.kind import get_kind
from model.network import MultiTaskNetwork
from model.tasks.spec import TaskSpec
from tests.unit.trainer.deployment.conftest import TASKS, write_model
from trainer.deployment import onnx_file
from trainer.deployment.deploy import deploy
from trainer.errors import UserError

pytestmark = pytest.mark.slow
onnxruntime = pytest.importorskip("onnxruntime")

CONVNEXT = {
    "model_type": "convnextv2", "hidden_sizes": [8, 16], "depths": [1, 1], "patch_size": 4,
    "num_stages": 2,
}  # fmt: skip
TRANSFORMER = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
ENCODERS = {
    "residual64": {"channels": 8},
    "xception": {
        "size": (64, 64), "decoder": "deconv", "trunk_depth": 3, "sizes": [8, 8, 16, 16, 24],
        "channels": 16,
    },
    "resnet": {
        "name": "backbone", "model_type": "resnet", "embedding_size": 8, "hidden_sizes": [8, 16],
        "depths": [1, 1], "size": (32, 32), "trunk_depth": 1,
    },
    "convnextv2": {"name": "backbone", "size": (32, 32), **CONVNEXT},
    "vit": {
        "name": "backbone", "model_type": "vit", "patch_size": 8, "intermediate_size": 64,
        "size": (32, 32), "trunk_depth": 1, **TRANSFORMER,
    },
    "dinov2": {
        "name": "backbone", "model_type": "dinov2", "patch_size": 7, "size": (28, 28),
        **TRANSFORMER,
    },
    "swinv2": {
        "name": "backbone", "model_type": "swinv2", "embed_dim": 16, "depths": [1, 1],
        "num_heads": [2, 2], "window_size": 4, "size": (64, 64),
    },
}  # fmt: skip


def images(model, count, seed=0):
    generator = torch.Generator().manual_seed(seed)
    shape = (count, 3, *model.image_size)
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)


def agree(expected, found):
    assert list(found) == list(expected)
    for name, value in expected.items():
        assert found[name].shape == tuple(value.shape), name
        if value.is_floating_point():
            scale = max(1.0, float(value.abs().max()))
            assert np.abs(found[name] - value.numpy()).max() <= 1e-4 * scale, name
        else:
            assert (found[name] != value.numpy()).mean() <= 1e-3, name


def run_onnx(path, inputs):
    session = onnxruntime.InferenceSession(path)
    (entry,) = session.get_inputs()
    names = [output.name for output in session.get_outputs()]
    return entry, dict(zip(names, session.run(None, {entry.name: inputs}), strict=True))


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """Export a model with an encoder as ONNX and as a program, once; the folder of all files."""
    folders = {}

    def export(encoder):
        if encoder not in folders:
            folder = tmp_path_factory.mktemp(encoder)
            described = {"name": encoder, **ENCODERS[encoder]}
            source = write_model(folder / "m.safetensors", **described)
            for suffix, name in ((".onnx", "onnx"), (".pt2", "torch")):
                report = deploy(source, folder / f"m{suffix}", name)
                assert report.format == name and report.tasks == 6
                assert 0 <= report.max_rel_diff <= 1e-4
            folders[encoder] = folder
        return folders[encoder]

    return export


@pytest.mark.parametrize("encoder", ENCODERS)
def test_every_encoder_as_onnx_and_as_a_program(encoder, exported):
    folder = exported(encoder)
    assert {path.name for path in folder.iterdir()} == {"m.safetensors", "m.onnx", "m.pt2"}
    model = load_pruned(folder / "m.safetensors")
    program = torch.export.load(folder / "m.pt2").module()
    for count in (1, 5):
        batch = images(model, count, seed=count)
        expected = model(batch)
        entry, found = run_onnx(folder / "m.onnx", batch.numpy())
        assert (entry.name, entry.type) == ("images", "tensor(uint8)")
        assert entry.shape == ["batch", 3, *model.image_size]
        agree(expected, found)
        agree(expected, {name: value.numpy() for name, value in program(batch).items()})


def test_what_is_described_in_the_files(exported):
    folder = exported("residual64")
    session = onnxruntime.InferenceSession(folder / "m.onnx")
    found = json.loads(session.get_modelmeta().custom_metadata_map["dmtg"])
    extra = {"dmtg.json": ""}
    torch.export.load(folder / "m.pt2", extra_files=extra)
    assert json.loads(extra["dmtg.json"]) == found
    assert found["input"]["image_size"] == [16, 16]
    assert found["input"]["preprocessing"] == "normalize"
    assert [task["name"] for task in found["tasks"]] == [task.name for task in TASKS]
    for task, described in zip(TASKS, found["tasks"], strict=True):
        assert described["unit"] == task.unit
        assert tuple(described["classes"]) == get_kind(task.kind).class_names(task)
    assert found["groups"] == load_pruned(folder / "m.safetensors").groups
    assert found["metadata"]["recipe"] == "affinity"


@pytest.mark.parametrize("suffix", [".onnx", ".pt2"])
def test_photos_of_any_size_are_resized_inside(model_file, tmp_path, suffix):
    model = load_pruned(model_file)
    path = tmp_path / f"m{suffix}"
    deploy(model_file, path, "onnx" if suffix == ".onnx" else "torch", preprocessing="resize")
    smooth = np.linspace(0, 255, 40 * 27 * 3).reshape(40, 27, 3).astype(np.uint8)
    for photo in (smooth, smooth[:9, :11], smooth[::-1, :].copy()):
        batch = np.stack([photo, photo[::-1]])
        if suffix == ".onnx":
            entry, found = run_onnx(path, batch)
            assert entry.shape == ["batch", "height", "width", 3]
        else:
            outputs = torch.export.load(path).module()(torch.from_numpy(batch))
            found = {name: value.numpy() for name, value in outputs.items()}
        for row, one in enumerate(batch):
            expected = model(model.preprocess(one))
            # Pillow rounds to levels, the graph does not: half a level of 255 moves the outputs.
            for name in ("cube", "shape", "age"):
                np.testing.assert_allclose(
                    found[name][row], expected[name][0].numpy(), atol=0.02, rtol=0.01
                )


def test_images_that_the_caller_normalizes(model_file, tmp_path):
    model = load_pruned(model_file)
    deploy(model_file, tmp_path / "m.onnx", "onnx", preprocessing="none")
    batch = images(model, 3)
    mean = np.array([0.485, 0.456, 0.406], np.float32).reshape(3, 1, 1)
    std = np.array([0.229, 0.224, 0.225], np.float32).reshape(3, 1, 1)
    entry, found = run_onnx(tmp_path / "m.onnx", (batch.numpy() / np.float32(255) - mean) / std)
    assert entry.type == "tensor(float)"
    agree(model(batch), found)


def test_weights_beyond_the_limit_of_one_file_are_beside_it(model_file, tmp_path, monkeypatch):
    monkeypatch.setattr(onnx_file, "MAX_BYTES", 1000)
    deploy(model_file, tmp_path / "m.onnx", "onnx")
    assert {path.name for path in tmp_path.iterdir()} == {"m.onnx", "m.onnx.data"}
    model = load_pruned(model_file)
    batch = images(model, 2)
    agree(model(batch), run_onnx(tmp_path / "m.onnx", batch.numpy())[1])


def test_some_tasks_as_onnx(model_file, tmp_path):
    deploy(model_file, tmp_path / "m.onnx", "onnx", tasks=["age", "wall"])
    model = load_pruned(model_file, tasks=["age", "wall"])
    batch = images(model, 2)
    agree(model(batch), run_onnx(tmp_path / "m.onnx", batch.numpy())[1])


def test_a_model_of_vectors(tmp_path):
    tasks = [TaskSpec("a", "binary"), TaskSpec("b", "regression")]
    encoder = build_encoder("mlp", 2, image_size=(1, 1), options={"widths": [5, 8, 4]})
    network = MultiTaskNetwork(tasks, encoder, (1, 1), heads=[(0, 0), (1, 1)])
    save_bundle(tmp_path / "m.safetensors", network, {})
    model = load_pruned(tmp_path / "m.safetensors")
    deploy(tmp_path / "m.safetensors", tmp_path / "m.onnx", "onnx")
    vectors = torch.randn(7, 5, 1, 1)
    entry, found = run_onnx(tmp_path / "m.onnx", vectors.numpy())
    assert entry.type == "tensor(float)" and entry.shape == ["batch", 5, 1, 1]
    agree(model(vectors), found)
    with pytest.raises(UserError, match="--preprocessing resize: the inputs of this model are not"):
        deploy(tmp_path / "m.safetensors", tmp_path / "n.onnx", "onnx", preprocessing="resize")
