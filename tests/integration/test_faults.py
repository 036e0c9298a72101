"""A run that diverges or is killed while it saves leaves a checkpoint that is good."""

import logging
import re
import shutil

import pytest
import torch

from trainer.checkpoints.checkpoint import load_checkpoint, newest_checkpoint
from trainer.errors import NonFiniteLossError, UserError
from trainer.run_folder import RunFolder

OPTIONS = ("run.steps=9", "run.checkpoint_every=2", "run.keep_last=2")


def final_files(folder):
    last = folder.checkpoints / "step-000000009"
    kinds = ("weights", "moments", "grouping")
    return [folder.metrics.read_bytes(), *((last / f"{k}.safetensors").read_bytes() for k in kinds)]


@pytest.mark.parametrize("every", [1, 100])
def test_divergence_stops_the_run_and_spares_the_last_checkpoint(every, rooms_config, train_here):
    """Also where no log record looks at the loss before the checkpoint is due."""
    options = ("optim.warmup_steps=4", "optim.max_grad_norm=null", f"log.every={every}")
    config = rooms_config(*OPTIONS, "optim.lr=1e30", *options)
    with pytest.raises(NonFiniteLossError, match=r"NaN or infinite in step \d+: \['") as error:
        train_here(config)
    assert "depth_zbuffer" in str(error.value)
    newest = newest_checkpoint(config.run.out / "checkpoints")
    if newest is not None:
        weights = load_checkpoint(newest).state.weights
        assert all(bool(value.isfinite().all()) for value in weights.values())


def test_divergence_after_good_checkpoints(rooms_config, train_here, monkeypatch):
    """The weights are spoilt after the step that was saved; that checkpoint stays the newest."""
    from trainer import loop

    step = loop.train_step

    def propagate_nonfinite(session, micro_batches):
        if session.step == 5:
            with torch.no_grad():
                session.engine.module.stacked_heads["regression_1_mse"].weight.fill_(torch.inf)
        return step(session, micro_batches)

    monkeypatch.setattr(loop, "train_step", propagate_nonfinite)
    config = rooms_config(*OPTIONS)
    with pytest.raises(NonFiniteLossError, match=r"in step 5: \['camera_pitch'\]"):
        train_here(config)
    newest = newest_checkpoint(config.run.out / "checkpoints")
    assert newest.name == "step-000000004"
    weights = load_checkpoint(newest).state.weights
    assert all(bool(value.isfinite().all()) for value in weights.values())


@pytest.mark.slow
@pytest.mark.distributed
def test_divergence_ends_the_process_with_code_1(launcher, rooms_yaml, tmp_path):
    options = ("optim.lr=1e30", "optim.max_grad_norm=null", "optim.warmup_steps=0")
    end = launcher.train(rooms_yaml, f"run.out={tmp_path / 'run'}", *OPTIONS, *options).finish()
    assert end.code == 1
    assert re.search(r"the loss became NaN or infinite in step \d+: \['", end.stderr)


@pytest.fixture(scope="module")
def finished_run(main_script, rooms_yaml, tmp_path_factory):
    out = tmp_path_factory.mktemp("finished") / "run"
    assert main_script("--config", rooms_yaml, f"run.out={out}", *OPTIONS).code == 0
    return out


@pytest.fixture
def whole(finished_run, tmp_path):
    """A run that ended; a test may damage it."""
    return RunFolder(shutil.copytree(finished_run, tmp_path / "whole"))


def test_a_truncated_checkpoint_is_passed_over(whole, rooms_config, train_here, caplog, tmp_path):
    expected = final_files(whole)
    damaged = whole.checkpoints / "step-000000009" / "weights.safetensors"
    damaged.write_bytes(damaged.read_bytes()[:100])
    (whole.checkpoints / "step-000000010.partial").mkdir()
    with caplog.at_level(logging.INFO):
        out = f"run.out={tmp_path / 'whole'}"
        resumed = train_here(rooms_config(*OPTIONS, out, "run.resume=auto")).folder
    assert "passing over checkpoint" in caplog.text
    assert "weights.safetensors has 100 bytes, " in caplog.text
    assert f"continuing from {whole.checkpoints / 'step-000000008'}" in caplog.text
    assert final_files(resumed) == expected


def test_a_run_whose_checkpoints_are_all_damaged_is_left_alone(whole, rooms_config, train_here):
    metrics = whole.metrics.read_bytes()
    for path in whole.checkpoints.glob("step-*/progress.json"):
        path.unlink()
    with pytest.raises(UserError, match=r"none of \d+ checkpoints is whole"):
        train_here(rooms_config(*OPTIONS, f"run.out={whole.out}", "run.resume=auto"))
    assert whole.metrics.read_bytes() == metrics


KILLED = """
import os, signal, sys
from pathlib import Path
from dmtg import files
from trainer.checkpoints import files as checkpoint_files
from trainer.config.loading import load_config
from trainer.engines.accelerator import make_accelerator
from trainer.loop import train
from trainer.session import start_session

calls, left = files.sync_path, [int(sys.argv[1])]

def sync(path):
    left[0] -= 1
    if left[0] == 0:
        os.kill(os.getpid(), signal.SIGKILL)
    calls(path)

config = load_config(Path(sys.argv[2]), sys.argv[3:])
session = start_session(config, make_accelerator(config))
files.sync_path = checkpoint_files.sync_path = sync
train(session)
"""
SYNCS = 9  # of one checkpoint: five files, two folders, the pointer and its folder


@pytest.mark.distributed
@pytest.mark.parametrize(
    "call",
    [
        pytest.param(SYNCS + 2, id="files", marks=pytest.mark.slow),
        pytest.param(SYNCS + 7, id="named", marks=pytest.mark.slow),
        pytest.param(SYNCS + 8, id="last"),
    ],
)
def test_killed_while_a_checkpoint_is_written(
    call, whole, rooms_config, rooms_yaml, train_here, launcher, tmp_path
):
    """The second checkpoint is cut short: among its files, once it has its name, at its pointer."""
    out = tmp_path / "killed"
    end = launcher.python(KILLED, str(call), str(rooms_yaml), f"run.out={out}", *OPTIONS)
    assert end.code == -9, end.stderr
    name = "step-000000004"
    assert (out / "checkpoints" / f"{name}.partial").exists() == (call == SYNCS + 2)
    assert (out / "checkpoints" / name).exists() == (call != SYNCS + 2)
    resumed = train_here(rooms_config(*OPTIONS, f"run.out={out}", "run.resume=auto")).folder
    assert resumed.metrics.read_bytes() == whole.metrics.read_bytes()
    assert sorted(path.name for path in resumed.checkpoints.iterdir()) == [
        "latest", "step-000000008", "step-000000009",
    ]  # fmt: skip
