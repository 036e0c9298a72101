"""Two real processes, of which one is slow: who is named, and what a monitor sees on the way."""

import json
import socket
from pathlib import Path

import pytest

pytestmark = pytest.mark.distributed

DELAY = 0.1  # seconds a sample


@pytest.fixture(scope="module")
def watched(session_launcher, rooms_yaml, tmp_path_factory):
    """The folder of a finished run, and all that its status said on the way."""
    out = tmp_path_factory.mktemp("monitoring") / "run"
    process = session_launcher.start(
        str(DELAY), "--config", str(rooms_yaml), f"run.out={out}", "run.steps=12", "log.every=3",
        "run.profile=4:6", "run.profile_ranks=all", engine="ddp_cpu",
        script=Path(__file__).with_name("slow_rank.py"),
    )  # fmt: skip
    end = process.finish()
    assert end.code == 0, end.stderr[-4000:]
    seen = [json.loads(line) for line in (out / "statuses.jsonl").read_text().splitlines()]
    assert seen[-1] == json.loads((out / "status.json").read_text())
    return out, seen, end


def timing(out):
    lines = (out / "timing.jsonl").read_text().splitlines()
    return [record for line in lines if (record := json.loads(line))["kind"] == "steps"]


def test_the_slow_rank_is_named(watched):
    records = timing(watched[0])
    assert [record["step"] for record in records] == [3, 6, 9, 12]
    host = socket.gethostname()
    for record in records:
        slowest, data = record["slowest"], record["data_seconds"]
        assert (slowest["rank"], slowest["host"], data["max_rank"]) == (1, host, 1)
        assert data["max"] > 4 * DELAY  # four samples a step
        assert slowest["own_seconds"] > slowest["others_own_seconds"] + 2 * DELAY
        assert record["step_seconds"] > slowest["own_seconds"]


def test_speed_is_that_of_all_processes(watched):
    for record in timing(watched[0]):
        assert record["samples_per_second"] == pytest.approx(8 / record["step_seconds"], 1e-3)
        assert record["samples_per_second_per_process"] == pytest.approx(
            record["samples_per_second"] / 2, 1e-3
        )


def test_the_status_goes_from_start_to_end(watched):
    _, seen, _ = watched
    states = [status["state"] for status in seen]
    order = [state for n, state in enumerate(states) if n == 0 or state != states[n - 1]]
    assert order[0] == "starting" and order[-1] == "finished" and "running" in order
    steps = [status.get("step", 0) for status in seen]
    assert steps == sorted(steps) and steps[-1] == 12
    assert len({status["updated"] for status in seen}) >= 4
    (slow,) = {status["slowest"]["rank"] for status in seen if status.get("slowest")}
    assert slow == 1
    left = [status["eta_seconds"] for status in seen if status.get("eta_seconds")]
    assert all(0 < seconds < 120 for seconds in left) and left


def test_every_rank_has_a_log_and_a_trace(watched):
    out, _, end = watched
    for rank in (0, 1):
        log = (out / "logs" / f"rank-{rank}.log").read_text()
        assert f"rank-{rank}-steps-4-6.json" in log and socket.gethostname() in log
        trace = json.loads((out / "profile" / f"rank-{rank}-steps-4-6.json").read_text())
        names = {event.get("name") for event in trace["traceEvents"]}
        assert {"aten::convolution", "forward", "wait for data"} <= names
    assert "rank-1-steps" not in end.stderr  # shown are the main process's lines only
