"""A run of two processes with the batch statistics of both equals a run of one process."""

import json
from pathlib import Path

import pytest

from trainer.config.loading import load_config

pytestmark = pytest.mark.distributed

OVERRIDES = (
    "run.steps=6", "model.encoder.name=residual64", "model.encoder.options={channels: 8}",
    "model.activation_checkpointing=true",
)  # fmt: skip


def records(run, kind):
    lines = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    return [record for record in lines if record["kind"] == kind]


@pytest.mark.parametrize(
    "engine",
    ["ddp_cpu", *(pytest.param(e, marks=pytest.mark.slow) for e in ("zero3_cpu", "fsdp2_cpu"))],
)
def test_losses_and_metrics_are_those_of_one_process(
    engine, rooms_yaml, tmp_path, train_here, launcher
):
    one, two = tmp_path / "one", tmp_path / "two"
    train_here(load_config(rooms_yaml, [f"run.out={one}", *OVERRIDES]))
    end = launcher.start(
        "--config", str(rooms_yaml), f"run.out={two}", *OVERRIDES, engine=engine,
        script=Path(__file__).with_name("synchronised_main.py"),
    ).finish()  # fmt: skip
    assert end.code == 0, end.stderr[-4000:]
    found, expected = records(two, "train"), records(one, "train")
    assert len(found) == len(expected) == 6
    for now, then in zip(found, expected, strict=True):
        assert now["losses"] == pytest.approx(then["losses"], rel=1e-4), now["step"]
    # The running statistics show in the evaluation.
    (found,), (expected,) = records(two, "eval"), records(one, "eval")
    for task, values in expected["metrics"].items():
        assert found["metrics"][task] == pytest.approx(values, rel=1e-3), task
