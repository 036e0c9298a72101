"""A worker that is lost brings all of them back to the last checkpoint, without a person."""

import re
import signal
import time

import pytest

pytestmark = pytest.mark.distributed

NUM_STEPS, EVERY = 40, 4
FINAL = f"checkpoints/step-{NUM_STEPS:09d}"
SAME_FILES = (
    "metrics.jsonl",
    *(f"{FINAL}/{name}.safetensors" for name in ("weights", "moments", "grouping")),
)
RUN = (f"run.steps={NUM_STEPS}", f"run.checkpoint_every={EVERY}", "run.resume=auto")


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["ddp_cpu"])
def test_killed_workers_are_started_again(engine, launcher, rooms_yaml, tmp_path):
    whole, out = tmp_path / "whole", tmp_path / "run"
    end = launcher.train(rooms_yaml, f"run.out={whole}", *RUN, engine=engine).finish()
    assert end.code == 0, end.stderr[-4000:]
    flags = ("--max_restarts", "2")
    process = launcher.train(rooms_yaml, f"run.out={out}", *RUN, engine=engine, flags=flags)
    for rank, step in ((1, EVERY), (0, 5 * EVERY)):
        wait_for_step(out / "checkpoints", step, process)
        process.worker(rank).send_signal(signal.SIGKILL)
    end = process.finish()
    assert end.code == 0, end.stderr[-4000:]
    found = re.findall(rf"continuing from {out}/checkpoints/step-(\d+)", end.stderr)
    assert len(found) == 2 and EVERY <= int(found[0]) < 5 * EVERY <= int(found[1]) < NUM_STEPS
    for name in SAME_FILES:
        assert (out / name).read_bytes() == (whole / name).read_bytes(), name


def wait_for_step(checkpoints, step, process, seconds=120):
    end = time.monotonic() + seconds
    while not (checkpoints / f"step-{step:09d}").exists():
        assert process.running and time.monotonic() < end, f"step {step} did not come"
        time.sleep(0.002)
