"""Two processes cannot work in one run folder."""

import fcntl
import logging
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from trainer import run_lock
from trainer.errors import UserError
from trainer.run_lock import lock

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture
def holder(tmp_path):
    """Another process that holds the lock."""
    code = (
        "import sys, time; from pathlib import Path; from trainer.run_lock import lock; "
        "held = lock(Path(sys.argv[1])); print('held', flush=True); time.sleep(60)"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path / "lock")], cwd=ROOT, stdout=subprocess.PIPE
    )
    assert process.stdout.readline() == b"held\n"
    yield process
    process.kill()
    process.wait()


def test_a_second_process_gives_up(holder, tmp_path, monkeypatch):
    monkeypatch.setattr(run_lock, "_WAIT", 0.2)
    expected = rf'run.out: .*"pid": {holder.pid}.* works in {re.escape(str(tmp_path))}; end it'
    with pytest.raises(UserError, match=expected):
        lock(tmp_path / "lock")


def test_the_lock_of_a_process_that_is_killed_is_free(holder, tmp_path, caplog):
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    start = time.monotonic()
    lock(tmp_path / "lock").close()
    assert time.monotonic() - start < 10 and not caplog.records


def test_a_second_process_goes_on_when_the_first_has_ended(holder, tmp_path, caplog):
    killer = subprocess.Popen(["bash", "-c", f"sleep 0.7; kill -9 {holder.pid}"])
    lock(tmp_path / "lock").close()
    killer.wait()
    assert "waiting for its end" in caplog.text


def test_a_file_system_without_locks(tmp_path, monkeypatch, caplog):
    def refuse(*_):
        raise OSError(37, "No locks available")

    monkeypatch.setattr(fcntl, "lockf", refuse)
    with caplog.at_level(logging.WARNING):
        lock(tmp_path / "lock").close()
    assert "the file system has no locks: No locks available" in caplog.text
