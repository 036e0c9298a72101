"""What a user does wrong, or a cluster does, ends a run on a GPU with one line."""

import re
import signal
from pathlib import Path

import pytest

from tests.distributed import faulty_main
from tests.gpu.devices import assert_same_curve, launch, records
from tests.processes import Launcher
from trainer.checkpoints.checkpoint import load_checkpoint, newest_checkpoint

pytestmark = pytest.mark.distributed

SCRIPT = Path(faulty_main.__file__)
SHORT = ("run.steps=12", "run.checkpoint_every=2", "run.timeout_seconds=12",
         "run.stall_seconds=200")  # fmt: skip


def the_line(end):
    """The one line by which a run tells why it failed."""
    found = [line for line in end.stderr.splitlines() if line.startswith("error: ")]
    assert len(found) == 1, end.stderr[-4000:]
    return found[0]


def started(engine):
    """How the launcher is given an engine on every device; none is one process."""
    if engine is None:
        return {}
    start = launch(engine)
    return {"engine": start.engine, "flags": ("--num_processes", str(start.num_processes))}


@pytest.mark.parametrize("engine", [None, "zero2"])
def test_a_missing_gpu(engine, rooms_yaml, tmp_path):
    launcher = Launcher(tmp_path / "cwd", with_gpus=False)
    asks = (f"run.out={tmp_path / 'run'}", "run.device=cuda")
    end = launcher.train(rooms_yaml, *asks, **started(engine)).finish()
    assert end.code == (2 if engine is None else 1)
    assert re.match(
        r"error: (rank 0 of \d on \S+: )?run\.device: it asks for GPUs, and ", the_line(end)
    )
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("engine", [None, "ddp", "zero2"])
def test_too_little_memory(engine, launcher, rooms_yaml, tmp_path):
    out = tmp_path / "run"
    arguments = ("memory:0:5", "--config", str(rooms_yaml), f"run.out={out}", *SHORT)
    end = launcher.start(*arguments, script=SCRIPT, **started(engine)).finish()
    assert re.search(r"error: .*out of memory.*step 5, training: ", the_line(end))
    checkpoint = load_checkpoint(newest_checkpoint(out / "checkpoints"))
    assert checkpoint.progress.step == 4


def test_sigterm_saves_and_another_start_goes_on(launcher, rooms_yaml, rooms_config, train,
                                                 tmp_path):  # fmt: skip
    out, number = tmp_path / "run", 60
    options = (f"run.steps={number}", "run.checkpoint_every=1000", "run.resume=auto")
    process = launcher.train(rooms_yaml, f"run.out={out}", *options, "data.workers=2")
    process.wait_for_step(out, 5)
    process.send(signal.SIGTERM)
    end = process.finish()
    assert end.code == 0, end.stderr[-4000:]
    (step,) = re.findall(r"preempted by SIGTERM after step (\d+); the run is saved", end.stderr)
    assert 5 <= int(step) < number
    end = launcher.train(rooms_yaml, f"run.out={out}", *options).finish()
    assert end.code == 0 and f"continuing from {out}/checkpoints/step-{int(step):09d}" in end.stderr
    whole = train(rooms_config(*options, f"run.out={tmp_path / 'whole'}"))
    assert len(records(out, "train")) == number
    assert_same_curve(out, whole, last=int(step) + 10)
