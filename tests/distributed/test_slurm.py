"""A job on a real Slurm of two nodes: submitted, preempted, queued again and finished."""

import json
import os
import re
import shutil
import subprocess
import time
from pathlib import Path

import pytest

from tests.distributed.cells import Cell, Launch
from trainer.monitoring.status import read_status

ROOT = Path(__file__).resolve().parents[2]
CLUSTER = ROOT / ".." / "shared" / "slurm" / "two_nodes.sh"
NUM_STEPS = 300
FINAL = f"checkpoints/step-{NUM_STEPS:09d}"
SAME_FILES = (
    "metrics.jsonl",
    *(f"{FINAL}/{name}.safetensors" for name in ("weights", "moments", "grouping")),
)
RUN = (f"run.steps={NUM_STEPS}", "run.checkpoint_every=1000", "grouping.noise=per_rank")

pytestmark = [
    pytest.mark.slow,
    pytest.mark.distributed,
    pytest.mark.skipif(not CLUSTER.exists(), reason="needs ../shared/slurm/two_nodes.sh"),
    pytest.mark.skipif(os.geteuid() != 0, reason="a Slurm of one's own needs root"),
]


WHOLE = Cell(Launch("ddp_cpu"), "slurm", RUN)


def cells():
    return [WHOLE]


@pytest.fixture
def cluster(tmp_path_factory, free_port, monkeypatch):
    """Two virtual nodes on this machine, which the commands of Slurm then speak to."""
    folder = tmp_path_factory.mktemp("slurm")
    monkeypatch.setenv("SLURMCTLD_PORT", str(free_port()))
    monkeypatch.setenv("SLURMD_PORT", str(free_port()))
    installed = shutil.which("slurmctld") is not None
    with open(folder / "start.log", "w") as log:  # not a pipe, which the daemons would keep open
        started = subprocess.run(
            ["bash", str(CLUSTER), "start", str(folder)], stdout=log, stderr=log, timeout=300
        )
    if started.returncode and not installed and shutil.which("slurmctld") is None:
        pytest.skip("Slurm is not installed and could not be")
    monkeypatch.setenv("SLURM_CONF", str(folder / "slurm.conf"))
    try:
        assert started.returncode == 0, (folder / "start.log").read_text()
        yield
        subprocess.run(["scancel", "--user", "root"], check=False)
        wait_until(lambda: not command("squeue", "--noheader"), 60)
    finally:
        subprocess.run(["bash", str(CLUSTER), "stop", str(folder)], check=False)


def command(*arguments):
    done = subprocess.run(arguments, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, (arguments, done.stderr)
    return done.stdout


def wait_until(condition, seconds, shown=lambda: ""):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, shown()
        time.sleep(0.05)


@pytest.mark.usefixtures("cluster")
def test_a_preempted_job_finishes_as_the_uninterrupted_run(launcher, rooms_yaml, trained, tmp_path):
    out, cwd = tmp_path / "run", tmp_path / "cwd"
    options = ("--nodes", "2", "--time", "30", "--submit", "--json")
    end = launcher.dmtg("slurm", str(rooms_yaml), f"run.out={out}", *RUN, *options)
    assert end.code == 0, end.stderr
    number = json.loads(end.stdout.splitlines()[-1])["job"]
    log, metrics = cwd / f"dmtg-{number}.out", out / "metrics.jsonl"

    def written(path, text):
        return path.exists() and text in path.read_text()

    def shown():
        return log.read_text()[-6000:] if log.exists() else command("squeue")

    wait_until(lambda: written(metrics, '"step": 5,'), 240, shown)
    # What --signal=B:USR1@120 does two minutes before the time limit.
    command("scancel", "--signal=USR1", "--batch", number)
    wait_until(lambda: written(log, f"job {number}: queued again"), 120, shown)
    assert read_status(out)["state"] == "preempted" and read_status(out)["job"] == number
    first = log.read_text()
    assert f"job {number}, restart 0: 2 nodes (n[1-2]), 1 processes each, rendez" in first
    stopped = re.search(r"preempted by SIGUSR1 after step (\d+); the run is saved", first)
    assert 5 <= int(stopped[1]) < NUM_STEPS
    assert f"exit code 0, run preempted, asked to stop by SIGUSR1\njob {number}: queued" in first
    assert "Exited with exit code" not in first, "nothing was killed for the launchers' codes"

    def pending():
        return "JobState=PENDING" in command("scontrol", "show", "job", number)

    wait_until(pending, 60, shown)
    command("scontrol", "update", f"JobId={number}", "StartTime=now")  # else it waits two minutes
    wait_until(lambda: written(log, "run finished"), 240, shown)
    second = log.read_text().removeprefix(first)
    assert f"job {number}, restart 1: 2 nodes" in second
    assert f"continuing from {out}/checkpoints/step-{int(stopped[1]):09d}" in second
    assert second.endswith(f"job {number}: exit code 0, run finished\n")

    def job():
        return command("scontrol", "show", "job", number)

    wait_until(lambda: "JobState=COMPLETED" in job(), 60, job)
    assert "Restarts=1" in job() and "ExitCode=0:0" in job()

    whole = trained(WHOLE)
    for name in SAME_FILES:
        assert (out / name).read_bytes() == (whole / name).read_bytes(), name
