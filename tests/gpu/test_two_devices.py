"""Two processes, each with a device of its own: a rank that is killed, and a vote to stop."""

import re
import signal

import pytest

from tests.gpu.devices import assert_same_curve
from tests.gpu.test_failures import SCRIPT, SHORT, started, the_line
from trainer.checkpoints.checkpoint import load_checkpoint, newest_checkpoint

pytestmark = [
    pytest.mark.distributed, pytest.mark.gpu(devices=2),
    pytest.mark.parametrize("engine", ["ddp", "zero2"]),
]  # fmt: skip


def test_a_rank_is_killed(engine, launcher, rooms_yaml, tmp_path):
    out = tmp_path / "run"
    arguments = ("kill:1:5", "--config", str(rooms_yaml), f"run.out={out}", *SHORT)
    end = launcher.start(*arguments, script=SCRIPT, **started(engine)).finish(120)
    assert end.code == 1
    assert re.search(
        r"rank 0 of 2 on \S+: lost contact with other ranks at step \d, \w+.*"
        r"no heartbeat from rank 1",
        the_line(end),
    )
    checkpoint = load_checkpoint(newest_checkpoint(out / "checkpoints"))
    assert checkpoint.progress.step == 4


def test_a_signal_to_one_rank_stops_both_after_the_same_step(
    engine, launcher, rooms_yaml, rooms_config, train, tmp_path
):
    out, number = tmp_path / "run", 60
    options = (f"run.steps={number}", "run.checkpoint_every=1000", "run.resume=auto")
    process = launcher.train(rooms_yaml, f"run.out={out}", *options, **started(engine))
    process.wait_for_step(out, 5)
    process.worker(1).send_signal(signal.SIGUSR1)
    end = process.finish()
    assert end.code == 0, end.stderr[-4000:]
    (step,) = re.findall(r"preempted by SIGUSR1 after step (\d+); the run is saved", end.stderr)
    assert (out / "checkpoints" / "latest").read_text() == f"step-{int(step):09d}"
    end = launcher.train(rooms_yaml, f"run.out={out}", *options, **started(engine)).finish()
    assert end.code == 0, end.stderr[-4000:]
    whole = train(rooms_config(*options, f"run.out={tmp_path / 'whole'}"), on_cpu=True)
    assert_same_curve(out, whole, last=int(step) + 10)
