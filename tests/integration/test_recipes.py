"""experiments/celeba9_k2.yaml on drawn faces: search, fine-tuning, export, another start."""

import json
from pathlib import Path

import numpy as np
import pytest

from data_pipelines.decode.codecs import encode_json
from data_pipelines.shards.encoded import EncodedSample, Storage
from data_pipelines.shards.manifest import Field
from data_pipelines.synthetic.dataset_writer import DatasetWriter
from model.tasks.presets import PRESETS

pytestmark = pytest.mark.slow

RECIPE = Path(__file__).resolve().parents[2] / "experiments" / "celeba9_k2.yaml"
NAMES = [task.name for task in PRESETS["celeba9"]]
SHORT = (
    "run.epochs=null", "run.steps=4", "finetune.epochs=0", "finetune.steps=2", "log.every=1",
    "data.global_batch=8", "data.workers=0", "log.progress=false", "log.trackers=[]",
)  # fmt: skip


@pytest.fixture(scope="module")
def faces(tmp_path_factory):
    """16 train and 8 val pictures of 64x64 noise with the nine attributes."""
    root, storage = tmp_path_factory.mktemp("faces") / "shards", Storage(portable=True)
    member = storage.image_member("rgb")
    fields = {"rgb": Field(member=member, kind="image", channels=3)} | {
        name: Field(member="attributes.json", key=name, kind="binary") for name in NAMES
    }
    writer = DatasetWriter(root, fields, samples_per_shard=8)
    generator = np.random.default_rng(0)
    for split, size in (("train", 16), ("val", 8)):
        samples = []
        for number in range(size):
            picture = generator.integers(0, 256, (64, 64, 3), dtype=np.uint8)
            labels = {name: int(generator.integers(2)) for name in NAMES}
            members = {member: storage.encode_image(picture)}
            members["attributes.json"] = encode_json(labels)
            samples.append(EncodedSample(f"{split}-{number}", members, labels))
        writer.write_split(split, samples)
    writer.finish("faces", "rgb")
    return root


def records(out, kind):
    lines = (out / "metrics.jsonl").read_text().splitlines()
    return [record for line in lines if (record := json.loads(line))["kind"] == kind]


def test_celeba9_k2_runs_to_an_exported_model_that_another_run_starts_from(
    faces, main_script, dmtg, tmp_path
):
    out, model = tmp_path / "run", tmp_path / "model.safetensors"
    arguments = ("--config", RECIPE, *SHORT, f"data.shards={faces}")
    end = main_script(*arguments, f"run.out={out}")
    assert end.code == 0, end.stderr
    train = records(out, "train")
    assert [r["heads"] for r in train[:4]] == [18] * 4 and train[-1]["heads"] == 9
    assert train[0]["lr"] == 8e-4 and train[2]["lr"] == pytest.approx(8e-4 / 2**3)
    phases = records(out, "finetune")
    assert [p["until"] - p["step"] for p in phases] == [2] * len(phases)
    assert len(train) == 4 + 2 * len(phases)
    assert set(records(out, "eval")[-1]["metrics"]) == set(NAMES)

    assert dmtg("export", out, "--out", model).code == 0
    short = ("run.steps=1", "finetune.steps=0", f"run.out={tmp_path / 'again'}")
    again = main_script(*arguments, *short, f"model.init_from=[{model}]")
    assert again.code == 0, again.stderr
    assert f"model.init_from: encoder and heads of {', '.join(NAMES)} from {model}" in again.stderr

    three = (
        "model.branches=3", f"run.out={tmp_path / 'three'}", f"model.init_from=[{model},{model}]",
    )  # fmt: skip
    refused = main_script(*arguments, *three)
    assert refused.code == 2 and "names 2 files, must name 1 or 3" in refused.stderr
