"""`dmtg train` as a user types it: what it starts, prints, and returns."""

import pytest

from tests.distributed.cells import TWELVE_STEPS, twelve_steps
from trainer.monitoring.status import read_status

pytestmark = pytest.mark.distributed

NUM_STEPS = 12
WHOLE = twelve_steps("ddp_cpu")


def cells():
    return [WHOLE]


def train(launcher, *arguments):
    return launcher.dmtg("train", *map(str, arguments))


def test_two_processes_on_the_cpu(launcher, rooms_yaml, trained, tmp_path):
    out = tmp_path / "run"
    end = train(launcher, rooms_yaml, f"run.out={out}", *TWELVE_STEPS, "--processes", 2)
    assert end.code == 0, end.stderr[-4000:]
    assert read_status(out)["world_size"] == 2
    assert end.stdout.count(f"{out}: finished after {NUM_STEPS} steps") == 1
    assert "Warning" not in end.stderr and "WARNING" not in end.stderr + end.stdout
    whole = trained(WHOLE)
    for name in ("metrics.jsonl", "result.json"):
        assert (out / name).read_bytes() == (whole / name).read_bytes(), name


@pytest.mark.slow
def test_zero_says_nothing_that_is_not_about_the_run(launcher, rooms_yaml, tmp_path):
    end = train(
        launcher, rooms_yaml, f"run.out={tmp_path / 'run'}", *TWELVE_STEPS, "--engine", "zero2_cpu"
    )
    assert end.code == 0, end.stderr[-4000:]
    assert "arning" not in end.stderr and "WARNING" not in end.stderr + end.stdout
    for line in end.stderr.splitlines():
        assert "[rank 0]" in line, line


@pytest.mark.slow
def test_an_error_of_the_processes_is_one_line(launcher, rooms_yaml, tmp_path):
    """No traceback of the launcher follows, and the exit code is theirs."""
    arguments = (rooms_yaml, f"run.out={tmp_path / 'run'}", "data.shards=nowhere")
    end = train(launcher, *arguments, "--processes", 2)
    assert end.code == 2
    (line,) = end.stderr.splitlines()
    assert line.startswith("error: rank ") and "nowhere/manifest.json: cannot be read" in line
    assert end.stdout == ""
