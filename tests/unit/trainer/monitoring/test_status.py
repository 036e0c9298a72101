import json
import logging
import os
import socket
import subprocess
import threading
from datetime import datetime, timedelta, timezone

import pytest

from trainer.errors import Preempted, UserError
from trainer.monitoring import status as module
from trainer.monitoring.status import StatusFile, note_failure, read_status, reported


@pytest.fixture(autouse=True)
def _no_runs(monkeypatch):
    monkeypatch.setattr(module, "_runs", [])


def content(folder):
    return json.loads((folder / "status.json").read_text())


def age(folder, seconds, **values):
    """Make the status so old."""
    then = datetime.now(timezone.utc) - timedelta(seconds=seconds)
    changed = {**content(folder), **values, "updated": then.isoformat()}
    (folder / "status.json").write_text(json.dumps(changed))


def test_writes_change_some_values_and_keep_the_others(tmp_path):
    file = StatusFile(tmp_path)
    file.write("starting", step=0, num_steps=9)
    file.write("running", step=3)
    StatusFile(tmp_path).write("preempted", cause="SIGUSR1")
    found = content(tmp_path)
    assert (found["state"], found["step"], found["num_steps"]) == ("preempted", 3, 9)
    assert (found["cause"], found["error"]) == ("SIGUSR1", None)
    assert (found["host"], found["pid"]) == (socket.gethostname(), os.getpid())
    age_seconds = datetime.now(timezone.utc) - datetime.fromisoformat(found["updated"])
    assert timedelta(0) <= age_seconds < timedelta(seconds=20)


def test_a_shell_can_read_the_state(tmp_path):
    StatusFile(tmp_path).write("running", losses={"state": 1.0})
    assert (tmp_path / "status.json").read_text().splitlines()[1] == ' "state": "running",'


def test_nothing_of_an_earlier_end_is_left_after_a_start(tmp_path):
    StatusFile(tmp_path).write("preempted", cause="SIGUSR1", step=3)
    StatusFile(tmp_path).fail("late")
    assert content(tmp_path)["state"] == "preempted"  # a run that has ended does not fail
    StatusFile(tmp_path).write("starting")
    assert (content(tmp_path)["cause"], content(tmp_path)["step"]) == (None, 3)


def test_the_job_and_the_newest_checkpoint_are_named(tmp_path, monkeypatch):
    monkeypatch.setenv("SLURM_JOB_ID", "4711")
    StatusFile(tmp_path).write("starting")
    assert (content(tmp_path)["job"], content(tmp_path)["checkpoint"]) == ("4711", None)
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "latest").write_text("step-000000007")
    StatusFile(tmp_path).write("running")
    assert content(tmp_path)["checkpoint"] == "step-000000007"


def test_numbers_that_json_does_not_know_are_null(tmp_path):
    StatusFile(tmp_path).write("running", loss=float("nan"), losses={"a": [float("inf"), 1.0]})
    assert "NaN" not in (tmp_path / "status.json").read_text()
    assert (content(tmp_path)["loss"], content(tmp_path)["losses"]) == (None, {"a": [None, 1.0]})


def test_it_can_be_read_at_any_moment(tmp_path):
    file, seen, broken = StatusFile(tmp_path), set(), []
    file.write("running", step=0, losses=dict.fromkeys(map(str, range(500)), 0.0))
    stop = threading.Event()

    def read_once():
        try:
            found = content(tmp_path)
        except (OSError, ValueError) as error:
            broken.append(error)
            return
        seen.add(found["step"])
        if len(found["losses"]) != 500:
            broken.append(found)

    def read():
        while not stop.is_set():
            read_once()

    reader = threading.Thread(target=read)
    reader.start()
    for step in range(100):
        file.write("running", step=step)
    stop.set()
    reader.join()
    assert not broken and len(seen) > 5
    assert [path.name for path in tmp_path.iterdir()] == ["status.json"]


def test_the_first_failure_is_kept(tmp_path):
    StatusFile(tmp_path).write("running", step=3)
    StatusFile(tmp_path).fail("rank 1: no memory")
    StatusFile(tmp_path).fail("rank 0: connection closed")
    found = content(tmp_path)
    assert (found["state"], found["error"], found["step"]) == ("failed", "rank 1: no memory", 3)


def test_no_folder_is_made(tmp_path):
    StatusFile(tmp_path / "run").write("starting")
    StatusFile(tmp_path / "run").fail("x")
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_cannot_be_written_is_one_warning(tmp_path, caplog):
    (tmp_path / "status.json").mkdir()
    file = StatusFile(tmp_path)
    with caplog.at_level(logging.WARNING):
        file.write("running")
        file.write("running")
    assert [path.name for path in tmp_path.iterdir()] == ["status.json"]
    (record,) = caplog.records
    assert record.message == f"{tmp_path / 'status.json'} cannot be written: Is a directory"


def test_a_run_is_reported_from_its_start_to_its_end(tmp_path):
    with reported(tmp_path, main=True):
        assert content(tmp_path)["state"] == "starting"
    assert content(tmp_path)["state"] == "finished"
    note_failure("after the end")
    assert content(tmp_path)["state"] == "finished"


def test_a_preempted_run_says_why(tmp_path):
    with pytest.raises(Preempted), reported(tmp_path, main=True):
        raise Preempted(3, "SIGTERM")
    note_failure("after the end")
    assert (content(tmp_path)["state"], content(tmp_path)["cause"]) == ("preempted", "SIGTERM")


def test_a_failure_is_noted_in_the_run_and_in_its_search(tmp_path):
    inner = tmp_path / "search"
    inner.mkdir()
    for folder in (tmp_path, inner):
        (folder / "config.yaml").touch()
    with (
        pytest.raises(ZeroDivisionError),
        reported(tmp_path, main=True),
        reported(inner, main=True),
    ):
        raise ZeroDivisionError
    assert content(inner)["state"] == "starting"  # nobody knows yet whether that was the cause
    note_failure("rank 1 of 2 on b: division by zero")
    for folder in (tmp_path, inner):
        found = content(folder)
        assert (found["state"], found["error"]) == ("failed", "rank 1 of 2 on b: division by zero")


def test_other_processes_note_only_failures(tmp_path):
    with reported(tmp_path, main=False):
        note_failure("this one")
        assert list(tmp_path.iterdir()) == []  # it holds no run, and may be deleted
        (tmp_path / "config.yaml").touch()
        note_failure("this one")
    assert content(tmp_path)["error"] == "this one"


def test_reading_says_how_old_it_is(tmp_path):
    StatusFile(tmp_path).write("running", interval_seconds=2.0)
    age(tmp_path, 299)
    found = read_status(tmp_path)
    assert found["stale"] is None and 299 <= found["age_seconds"] < 320


@pytest.mark.parametrize(
    ("seconds", "interval", "stale"),
    [
        (301, 2.0, "no update for 301 s, expected within 300 s"),
        (301, 60.0, None),
        (700, 60.0, "no update for 700 s, expected within 600 s"),
        (301, None, "no update for 301 s, expected within 300 s"),
    ],
)
def test_a_status_that_nobody_updates_is_stale(seconds, interval, stale, tmp_path):
    StatusFile(tmp_path).write("running", interval_seconds=interval)
    age(tmp_path, seconds)
    assert read_status(tmp_path)["stale"] == stale


def test_a_process_that_is_gone_is_noticed_at_once(tmp_path):
    gone = subprocess.Popen(["true"])
    gone.wait()
    StatusFile(tmp_path).write("running")
    age(tmp_path, 1, pid=gone.pid)
    assert read_status(tmp_path)["stale"] == f"process {gone.pid} has ended"
    age(tmp_path, 1, pid=gone.pid, host="elsewhere")
    assert read_status(tmp_path)["stale"] is None
    age(tmp_path, 9999, pid=gone.pid, state="finished")
    assert read_status(tmp_path)["stale"] is None


def test_while_the_groups_are_searched_the_search_is_shown(tmp_path):
    inner = tmp_path / "search"
    inner.mkdir()
    StatusFile(inner).write("running", step=7)
    assert read_status(tmp_path)["step"] == 7
    StatusFile(tmp_path).write("starting")
    assert read_status(tmp_path)["step"] == 7
    StatusFile(inner).write("finished")
    assert read_status(tmp_path)["state"] == "starting"


def test_a_folder_without_a_status_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"has no status\.json: no run has been started in"):
        read_status(tmp_path)
    (tmp_path / "status.json").write_text("{")
    with pytest.raises(UserError, match=r"status\.json: cannot be read \(Expecting"):
        read_status(tmp_path)
