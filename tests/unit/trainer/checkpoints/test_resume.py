import json
import logging
import re
import shutil
from pathlib import Path

import pytest

from trainer.builders import build_network
from trainer.checkpoints.checkpoint import Progress
from trainer.checkpoints.resume import check_fits, describe_encoder
from trainer.errors import UserError
from trainer.run_data import open_manifest
from trainer.tasks import resolve_tasks

TASKS = [
    {"name": "a", "kind": "binary"},
    {"name": "b", "kind": "regression", "mean": [0.5]},
]
ENCODER = {"name": "mlp", "image_size": [1, 1], "options": {"widths": [4, 8], "depth": 2}}
RUN = {"tasks": TASKS, "encoder": ENCODER, "digest": "0123456789abcdef", "dataset": "rooms (36)"}


def progress():
    network = json.loads(json.dumps({"tasks": TASKS, "encoder": {**ENCODER, "trunk_depth": 1}}))
    return Progress(
        1, 1, 1, network, RUN["digest"], 0, {}, dataset=RUN["dataset"]
    )  # fmt: skip


def fault(**changes):
    with pytest.raises(UserError) as error:
        check_fits(progress(), Path("runs/step-1"), **{**RUN, **changes})
    first, *faults = str(error.value).splitlines()
    assert first == "checkpoint runs/step-1 is of another run:"
    return [line.strip() for line in faults]


def test_the_same_run_fits_and_tuples_are_lists():
    check_fits(progress(), Path("x"), **RUN)
    tasks = [TASKS[0], {**TASKS[1], "mean": (0.5,)}]
    check_fits(progress(), Path("x"), **{**RUN, "tasks": tasks})


def test_another_list_of_tasks_or_another_order():
    assert fault(tasks=TASKS[1:]) == ["its tasks are ['a', 'b'], the run's are ['b']"]
    assert fault(tasks=TASKS[::-1]) == ["its tasks are ['a', 'b'], the run's are ['b', 'a']"]


def test_another_task_of_the_same_name():
    changed = {"name": "b", "kind": "binary", "weight": 2}
    assert fault(tasks=[TASKS[0], changed]) == [
        "task b: kind was 'regression', is 'binary'",
        "task b: mean was [0.5], is None",
        "task b: weight was None, is 2",
    ]


def test_another_encoder():
    wider = {**ENCODER, "options": {"widths": [4, 16], "depth": 2}}
    assert fault(encoder=wider) == ["model.encoder.options.widths was [4, 8], is [4, 16]"]
    assert fault(encoder={"name": "vit"}) == ["model.encoder.name was 'mlp', is 'vit'"]


def test_other_data_and_everything_at_once():
    other = {"digest": "f" * 16, "dataset": "halls (9)"}
    shards = (
        "data.shards was rooms (36) with manifest 0123456789ab, "
        "is halls (9) with manifest ffffffffffff"
    )
    assert fault(**other) == [shards]
    assert len(fault(**other, tasks=TASKS[1:], encoder={"name": "vit"})) == 3


@pytest.mark.parametrize(
    "overrides",
    [
        (),
        ("model.encoder.options={model_type: resnet, hidden_sizes: [8, 16], depths: [1, 1]}",),
        ("model.encoder={name: residual64}", "data.image_size=[64, 64]"),
        ("model.encoder={name: xception}", "data.image_size=[64, 64]", "model.trunk_depth=6"),
    ],
    ids=["convnextv2", "resnet", "residual64", "xception"],
)
def test_the_encoder_is_described_as_the_network_describes_it(overrides, rooms_config):
    config = rooms_config(*overrides, "model.branches=1", "pruning.threshold=0.5")
    network = build_network(config, resolve_tasks(config.tasks, open_manifest(config)))
    assert describe_encoder(config) == json.loads(json.dumps(network.config()["encoder"]))


def test_of_a_pretrained_encoder_only_what_needs_no_folder_is_described(rooms_config):
    config = rooms_config("model.encoder.pretrained=/gone")
    assert describe_encoder(config) == {
        "name": "backbone", "image_size": [32, 32], "trunk_depth": 0,
    }  # fmt: skip


OPTIONS = ("run.steps=4", "run.checkpoint_every=1", "run.keep_last=9")


def test_a_checkpoint_copied_from_another_run_is_refused(rooms_config, train_here, tmp_path):
    train_here(rooms_config(*OPTIONS, "model.encoder.options.hidden_sizes=[8, 24]"))
    mine = train_here(rooms_config(*OPTIONS, f"run.out={tmp_path / 'mine'}")).folder
    shutil.rmtree(mine.checkpoints)
    shutil.copytree(tmp_path / "run" / "checkpoints", mine.checkpoints)
    message = "model.encoder.options.hidden_sizes was [8, 24], is [8, 16]"
    with pytest.raises(UserError, match=re.escape(message)):
        train_here(rooms_config(*OPTIONS, f"run.out={mine.out}", "run.resume=auto"))


def test_damaged_ones_are_named_set_aside_and_gone_after_the_next_save(
    rooms_config, train_here, caplog
):
    """The run then ends as if nothing had happened to it."""
    folder = train_here(rooms_config(*OPTIONS)).folder
    last = folder.checkpoints / "step-000000004" / "weights.safetensors"
    expected = [folder.metrics.read_bytes(), last.read_bytes()]
    (folder.checkpoints / "step-000000003" / "grouping.safetensors").unlink()
    last.write_bytes(last.read_bytes()[:-7])
    with caplog.at_level(logging.INFO):
        train_here(rooms_config(*OPTIONS, "run.resume=auto"))
    assert f"passing over checkpoint {last.parent}: weights.safetensors has " in caplog.text
    assert "step-000000003: grouping.safetensors is missing" in caplog.text
    assert f"continuing from {folder.checkpoints / 'step-000000002'}" in caplog.text
    assert [folder.metrics.read_bytes(), last.read_bytes()] == expected
    assert sorted(path.name for path in folder.checkpoints.glob("step-*")) == [
        f"step-{step:09d}" for step in range(1, 5)
    ]
