"""A worker that is lost brings all of them back to the last checkpoint, without a person."""

import re
import signal

import pytest

from tests.distributed.cells import Cell, Launch

pytestmark = pytest.mark.distributed

NUM_STEPS, EVERY = 40, 4
FINAL = f"checkpoints/step-{NUM_STEPS:09d}"
SAME_FILES = (
    "metrics.jsonl",
    *(f"{FINAL}/{name}.safetensors" for name in ("weights", "moments", "grouping")),
)
RUN = (f"run.steps={NUM_STEPS}", f"run.checkpoint_every={EVERY}", "run.resume=auto")


WHOLE = Cell(Launch("ddp_cpu"), "elastic", RUN)


def cells():
    return [WHOLE]


@pytest.mark.slow
def test_killed_workers_are_started_again(trained, launcher, rooms_yaml, tmp_path):
    whole, out = trained(WHOLE), tmp_path / "run"
    flags = ("--max_restarts", "2")
    process = launcher.train(rooms_yaml, f"run.out={out}", *RUN, engine="ddp_cpu", flags=flags)
    for rank, step in ((1, EVERY), (0, 5 * EVERY)):
        process.wait_for(out / f"checkpoints/step-{step:09d}")
        process.worker(rank).send_signal(signal.SIGKILL)
    end = process.finish()
    assert end.code == 0, end.stderr[-4000:]
    found = re.findall(rf"continuing from {out}/checkpoints/step-(\d+)", end.stderr)
    assert len(found) == 2 and EVERY <= int(found[0]) < 5 * EVERY <= int(found[1]) < NUM_STEPS
    for name in SAME_FILES:
        assert (out / name).read_bytes() == (whole / name).read_bytes(), name
