"""A run that is asked to stop saves on all ranks, ends with code 0 and is continued exactly."""

import re
import signal

import psutil
import pytest

from tests.distributed.cells import Cell, Launch

pytestmark = pytest.mark.distributed

NUM_STEPS = 120
FINAL = f"checkpoints/step-{NUM_STEPS:09d}"
SAME_FILES = (
    "metrics.jsonl",
    *(f"{FINAL}/{name}.safetensors" for name in ("weights", "moments", "grouping")),
)
# No checkpoint is due before the end: what a resume finds was saved for the signal.
RUN = (
    f"run.steps={NUM_STEPS}", "run.checkpoint_every=1000", "grouping.noise=per_rank",
    "run.resume=auto",
)  # fmt: skip


def uninterrupted(engine: str) -> Cell:
    return Cell(Launch(engine), "preemption", RUN)


def cells(engine=None, **_):
    return [uninterrupted(engine)] if engine else ()


def preempted_at(stderr: str, cause: str) -> int:
    return int(re.search(rf"preempted by {cause} after step (\d+); the run is saved", stderr)[1])


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["ddp_cpu", "zero2_cpu"])
def test_a_signal_to_one_rank_stops_all_after_the_same_step(
    engine, launcher, rooms_yaml, trained, tmp_path
):
    out = tmp_path / "run"
    arguments = (f"run.out={out}", *RUN)
    process = launcher.train(rooms_yaml, *arguments, engine=engine)
    process.wait_for_step(out, 5)
    process.worker(1).send_signal(signal.SIGUSR1)
    end = process.finish()
    assert end.code == 0, end.stderr[-4000:]
    step = preempted_at(end.stderr, "SIGUSR1")
    assert 5 <= step < NUM_STEPS
    assert (out / "checkpoints" / "latest").read_text() == f"step-{step:09d}"
    end = launcher.train(rooms_yaml, *arguments, engine=engine).finish()
    assert end.code == 0 and f"continuing from {out}/checkpoints/step-{step:09d}" in end.stderr
    whole = trained(uninterrupted(engine))
    for name in SAME_FILES:
        assert (out / name).read_bytes() == (whole / name).read_bytes(), name


def test_sigterm_to_every_process_as_slurm_sends_it(launcher, rooms_yaml, tmp_path):
    """The loader's workers get it too, and have to give what the last step needs."""
    out = tmp_path / "run"
    arguments = (f"run.out={out}", *RUN, "data.workers=2")
    process = launcher.train(rooms_yaml, *arguments)
    process.wait_for_step(out, 5)
    for child in process.tree():
        child.send_signal(signal.SIGTERM)
    end = process.finish()
    assert end.code == 0, end.stderr[-4000:]
    step = preempted_at(end.stderr, "SIGTERM")
    assert (out / "checkpoints" / "latest").read_text() == f"step-{step:09d}"


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1], ids=lambda n: n.name)
def test_a_signal_to_the_launcher_reaches_the_workers(
    number, launcher, rooms_yaml, tmp_path, monkeypatch
):
    """torchrun passes SIGUSR1 on where it is told to; its own code is 1 then."""
    monkeypatch.setenv("PET_SIGNALS_TO_HANDLE", "SIGUSR1,SIGTERM,SIGINT,SIGHUP,SIGQUIT")
    out = tmp_path / "run"
    process = launcher.train(rooms_yaml, f"run.out={out}", *RUN, engine="ddp_cpu")
    process.wait_for_step(out, 5)
    workers = [process.worker(rank) for rank in (0, 1)]
    process.send(number)
    end = process.finish()
    assert end.code == 1
    step = preempted_at(end.stderr, number.name)
    assert (out / "checkpoints" / "latest").read_text() == f"step-{step:09d}"
    assert not any(psutil.pid_exists(worker.pid) for worker in workers), "none goes on alone"
