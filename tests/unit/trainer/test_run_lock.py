"""Two processes cannot work in one run folder."""

import errno
import fcntl
import json
import logging
import os
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
    monkeypatch.setattr(run_lock, "WAIT_SECONDS", 0.2)
    expected = rf'run.out: .*"pid": {holder.pid}.* uses {re.escape(str(tmp_path))}; end it'
    with pytest.raises(UserError, match=expected):
        lock(tmp_path / "lock")


def test_the_lock_of_a_process_that_is_killed_is_free(holder, tmp_path, caplog):
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    start = time.monotonic()
    lock(tmp_path / "lock").release()
    assert time.monotonic() - start < 10 and not caplog.records


def test_a_second_process_goes_on_when_the_first_has_ended(holder, tmp_path, caplog):
    killer = subprocess.Popen(["bash", "-c", f"sleep 0.7; kill -9 {holder.pid}"])
    lock(tmp_path / "lock").release()
    killer.wait()
    assert "waiting until it ends" in caplog.text


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOSYS])
def test_a_file_system_without_locks(number, tmp_path, monkeypatch, caplog):
    def refuse(*_):
        raise OSError(number, "No locks available")

    monkeypatch.setattr(fcntl, "flock", refuse)
    with caplog.at_level(logging.WARNING):
        lock(tmp_path / "lock").release()
    assert "the file system has no locks: No locks available" in caplog.text
    assert [path.name for path in tmp_path.iterdir()] in ([], ["lock"])  # no soft lock is left


def test_another_error_is_no_missing_lock(tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(fcntl, "flock", refuse)
    with pytest.raises(OSError, match="Input/output error"):
        lock(tmp_path / "lock")


def test_a_process_that_holds_the_lock_gets_it_again(tmp_path):
    first, second = lock(tmp_path / "lock"), lock(tmp_path / "lock")
    assert second.is_locked
    second.release(force=True)
    assert not first.is_locked


FORKED = """
import os, sys, time
from pathlib import Path
from trainer.run_lock import lock
held = lock(Path(sys.argv[1]))
child = os.fork()
if child == 0:
    time.sleep(60)
print(child, flush=True)
time.sleep(60)
"""


def test_a_worker_that_outlives_the_holder_does_not_keep_the_lock(tmp_path, monkeypatch):
    """A lock of `flock` is shared with forked processes, such as the loader's workers."""
    monkeypatch.setattr(run_lock, "WAIT_SECONDS", 5.0)
    process = subprocess.Popen(
        [sys.executable, "-c", FORKED, str(tmp_path / "lock")], cwd=ROOT, stdout=subprocess.PIPE
    )
    worker = int(process.stdout.readline())
    process.kill()
    process.wait()
    try:
        os.kill(worker, 0)
        lock(tmp_path / "lock").release()
    finally:
        os.kill(worker, signal.SIGKILL)


def test_the_lock_file_names_its_holder(holder, tmp_path):
    assert json.loads((tmp_path / "lock").read_text())["pid"] == holder.pid
    holder.kill()
    holder.wait()
    held = lock(tmp_path / "lock")
    assert json.loads((tmp_path / "lock").read_text())["pid"] == os.getpid()
    held.release()
