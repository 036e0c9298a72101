"""Formats, their names, and the errors; the conversions themselves are in `test_formats.py`."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from model.bundle import BundleError, load_pruned
from trainer.deployment import deploy as deploy_module
from trainer.deployment import onnx_file
from trainer.deployment.deploy import deploy, format_of
from trainer.deployment.deployed import DeployedModel, check_agreement
from trainer.errors import UserError

IMAGES = torch.arange(2 * 3 * 256).remainder(251).view(2, 3, 16, 16).to(torch.uint8)


def test_the_format_is_named_or_that_of_the_suffix():
    assert format_of(Path("m.onnx"), None) == format_of(Path("m.onnx"), "onnx") == "onnx"
    assert format_of(Path("m.pt2"), None) == format_of(Path("m.pt2"), "torch") == "torch"
    for name in ("m.safetensors", "m", "m.bin"):
        assert format_of(Path(name), None) == format_of(Path(name), "safetensors") == "safetensors"
    with pytest.raises(UserError, match=r"--out: found 'm\.onnx'; a file of --format safet"):
        format_of(Path("m.onnx"), "safetensors")
    with pytest.raises(UserError, match=r"--out: found 'm'; a file of --format onnx ends in"):
        format_of(Path("m"), "onnx")
    with pytest.raises(UserError, match="--format: found 'tflite'; allowed: safetensors, onnx, to"):
        format_of(Path("m"), "tflite")


def test_a_smaller_model(model_file, tmp_path):
    report = deploy(model_file, tmp_path / "m.safetensors", "safetensors", tasks=["age", "cube"])
    assert (report.tasks, report.groups) == (2, 1) and report.max_rel_diff < 1e-6
    small, whole = load_pruned(tmp_path / "m.safetensors"), load_pruned(model_file)
    assert [task.name for task in small.tasks] == ["cube", "age"]
    torch.testing.assert_close(small(IMAGES)["age"], whole(IMAGES)["age"])
    assert len(load_file(tmp_path / "m.safetensors")) < len(load_file(model_file))
    with pytest.raises(BundleError, match=r"has no task 'agee'; .*did you mean 'age'"):
        deploy(model_file, tmp_path / "n.safetensors", "safetensors", tasks=["agee"])
    assert [path.name for path in tmp_path.iterdir()] == ["m.safetensors"]


@pytest.mark.parametrize("preprocessing", ["none", "normalize", "resize"])
def test_each_preprocessing_computes_the_models_predictions(model_file, preprocessing):
    model = load_pruned(model_file)
    expected = model(IMAGES)
    deployed = DeployedModel(model, preprocessing).eval()
    assert check_agreement("it", expected, deployed(deployed.inputs(IMAGES))) < 1e-5
    again = model(IMAGES)  # `none` has a network of its own
    assert all(torch.equal(again[name], value) for name, value in expected.items())


def test_photos_of_another_size_are_resized_as_by_preprocess(model_file, monkeypatch):
    """But for the rounding of Pillow, of up to a level of 255."""
    model = load_pruned(model_file)
    generator = torch.Generator().manual_seed(0)
    photo = torch.randint(0, 256, (45, 37, 3), dtype=torch.uint8, generator=generator)
    deployed = DeployedModel(model, "resize").eval()
    resized, forward = [], deployed.network.forward

    def record(images, selection):
        resized.append(images)
        return forward(images, selection)

    monkeypatch.setattr(deployed.network, "forward", record)
    deployed(photo[None])
    expected = model.preprocess(photo.numpy()).float()
    assert float((resized[0] - expected).abs().max()) <= 1.0
    assert float((resized[0] - expected).abs().mean()) < 0.5


def test_outputs_that_differ_leave_no_file(model_file, tmp_path, monkeypatch):
    load = deploy_module.load_pruned

    def spoilt(path, **options):
        model = load(path, **options)
        if path.name.startswith(".partial-"):  # the file that was written
            with torch.no_grad():
                next(model.network.stacked_heads["regression_1_l1"].parameters()).add_(0.5)
        return model

    monkeypatch.setattr(deploy_module, "load_pruned", spoilt)
    with pytest.raises(ValueError, match=r"task 'age' that differ from .*; nothing was w"):
        deploy(model_file, tmp_path / "m.safetensors", "safetensors", tasks=["age"])
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("found", "message"),
    [
        (torch.tensor([1.0, torch.nan]), "differ from the model's by nan, allowed is 0.0001"),
        (torch.tensor([1.0, 2.001]), "by 0.0005"),
    ],
)
def test_agreement_is_relative_to_the_largest_output(found, message):
    expected = torch.tensor([1.0, 2.0])
    assert check_agreement("it", {"a": expected}, {"a": expected + 1e-4}) <= 1e-4
    with pytest.raises(ValueError, match=message):
        check_agreement("it", {"a": expected}, {"a": found})


def test_the_share_of_other_class_ids_counts():
    ids = torch.zeros(100, 200, dtype=torch.int64)
    other = ids.clone()
    other[0, 0] = 1
    assert check_agreement("it", {"a": ids}, {"a": other}) == pytest.approx(1 / 20000)
    other[0, :3] = 1
    with pytest.raises(ValueError, match=r"by 0\.00015"):
        check_agreement("it", {"a": ids}, {"a": other})


def test_onnx_without_its_packages(model_file, tmp_path, monkeypatch):
    monkeypatch.setattr(onnx_file.importlib.util, "find_spec", lambda _: None)
    with pytest.raises(UserError, match=r"--format onnx: onnx, onnxruntime, onnxscript is not"):
        deploy(model_file, tmp_path / "m.onnx", "onnx")
    assert list(tmp_path.iterdir()) == []
