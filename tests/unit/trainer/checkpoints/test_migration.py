"""Checkpoints of earlier versions are read as if this version had written them."""

import json
import logging
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from data_pipelines.synthetic.planted import PlantedProblem
from trainer.bench.planted import PlantedData
from trainer.checkpoints.checkpoint import load_checkpoint
from trainer.checkpoints.migration import (
    VERSION,
    check_version,
    convert_grouping,
    convert_parameters,
    convert_progress,
)
from trainer.engines.accelerator import make_accelerator
from trainer.errors import UserError
from trainer.run import train_run
from trainer.run_folder import RunFolder

OLD = Path(__file__).resolve().parents[3] / "fixtures" / "version1"
STEP = "step-000000004"


def values(record):
    """All numbers and words of a record in their order, whatever their keys are called."""
    if isinstance(record, dict):
        return [value for part in record.values() for value in values(part)]
    if isinstance(record, list):
        return [value for part in record for value in values(part)]
    return [record]


@pytest.mark.usefixtures("forget_accelerate")
@pytest.mark.parametrize("recipe", ["affinity", "published"])
def test_a_run_of_version_1_goes_on_and_computes_the_same_numbers(recipe, tmp_path, caplog):
    folder = RunFolder(tmp_path / "run")
    shutil.copytree(OLD / recipe, folder.out)
    lines = folder.metrics.read_text().splitlines()
    config = folder.load_config()
    run = config.run.model_copy(update={"out": folder.out, "resume": "auto"})
    config = config.model_copy(update={"run": run})
    data = PlantedData(PlantedProblem(4, 2, seed=0), config)
    with caplog.at_level(logging.INFO):
        session, _ = train_run(config, make_accelerator(config), data)
    assert f"continuing from {folder.checkpoints / STEP}" in caplog.text and session.step == 40
    found = [values(json.loads(line)) for line in folder.metrics.read_text().splitlines()]
    assert found == [values(json.loads(line)) for line in lines]
    written = json.loads((max(folder.checkpoints.glob("step-*")) / "progress.json").read_text())
    assert written["version"] == VERSION and written["step"] == 40


@pytest.mark.parametrize("recipe", ["affinity", "published"])
def test_tensors_of_version_1_have_the_names_and_marks_of_this_one(recipe):
    old = OLD / recipe / "checkpoints" / STEP
    checkpoint = load_checkpoint(old)
    files = {
        name: load_file(old / f"{name}.safetensors") for name in ("weights", "moments", "grouping")
    }
    assert set(files["weights"]) - set(checkpoint.state.weights) == {
        "banks.binary_1_bce.bias", "banks.binary_1_bce.weight",
    }  # fmt: skip
    for name, value in checkpoint.state.weights.items():
        assert torch.equal(value, files["weights"][name.replace("stacked_heads.", "banks.")])
    for moment, tensors in checkpoint.state.moments.items():
        assert tensors.keys() == checkpoint.state.weights.keys()
        for name, value in tensors.items():
            old_name = f"{moment}/{name.replace('stacked_heads.', 'banks.')}"
            assert torch.equal(value, files["moments"][old_name])
    mean = {"affinity": "average", "published": "mean_losses"}[recipe]
    was, found = files["grouping"][mean], checkpoint.grouping[mean]
    assert torch.equal(found.isnan(), was == 0) and (was == 0).any()
    assert torch.equal(found[was != 0], was[was != 0])
    if recipe == "affinity":
        assert checkpoint.grouping["residual_tasks"].tolist() == [0, 1, 2, 3]
        for name in ("count", "features", "products", "residuals", "second"):
            value = files["grouping"][f"signals.{name}"]
            assert torch.equal(checkpoint.grouping[f"gradient_statistics.{name}"], value)
        assert not any("signal" in name for name in checkpoint.grouping)


def test_what_this_version_wrote_is_left_as_it_is():
    tensors = {"banks.a": torch.zeros(2), "average": torch.zeros(2), "signals.b": torch.ones(1)}
    for convert in (convert_parameters, convert_grouping):
        assert convert(tensors, VERSION) == tensors
    assert convert_progress({"step": 3}, VERSION) == {"step": 3}


@pytest.mark.parametrize("version", [VERSION + 1, 0, "2", None, 1.5])
def test_other_versions_are_refused(version, tmp_path):
    shutil.copytree(OLD / "affinity" / "checkpoints" / STEP, tmp_path / STEP)
    path = tmp_path / STEP / "progress.json"
    path.write_text(json.dumps({"version": version, **json.loads(path.read_text())}))
    message = f"format version is {version!r}, this program reads versions 1 to {VERSION}"
    with pytest.raises(ValueError, match=message):
        check_version(version)
    with pytest.raises(UserError, match=rf"checkpoint .*{STEP}: progress\.json .*{message}"):
        load_checkpoint(tmp_path / STEP, verified=True)
