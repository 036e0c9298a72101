"""A signal ends a start at once, wherever it waits; the status never says that a dead run runs."""

import contextlib
import errno
import json
import os
import signal
import socket
import threading
import time
from pathlib import Path

import psutil
import pytest

from trainer.monitoring import status as status_module
from trainer.monitoring.status import StatusFile, read_status
from trainer.run_lock import lock

pytestmark = pytest.mark.distributed

SCRIPT = Path(__file__).with_name("waiting_main.py")
# Two on a machine that does nothing else; the tests run beside others.
SECONDS = 8.0
CODES = {signal.SIGTERM: 143, signal.SIGUSR1: 138, signal.SIGINT: 130}


def stopped_by(process, number, target=None):
    """Send a signal and return how the process ended, which may not take long."""
    start = time.monotonic()
    target.send_signal(number) if target else process.send(number)
    end = process.finish(60)
    assert time.monotonic() - start < SECONDS, end.stderr[-4000:]
    return end


@pytest.fixture
def start_waiting(launcher, rooms_yaml, tmp_path, free_port, monkeypatch):
    """Start a run, and return when it waits at a place."""

    def run(place, *overrides, **options):
        monkeypatch.setenv("WAITING_PORT", str(free_port()))
        arguments = ("--config", str(rooms_yaml), f"run.out={tmp_path / 'run'}", *overrides)
        process = launcher.start(place, *arguments, script=SCRIPT, **options)
        process.wait_for(tmp_path / "cwd" / "waiting")
        return process

    return run


PLACES = {
    "import": ("plugins=[slow_plugin]",),
    "rendezvous": (),
    "hashing": (),
    "first_step": (),
}


@pytest.mark.parametrize(
    ("place", "number"),
    [
        *((place, signal.SIGTERM) for place in PLACES),
        ("hashing", signal.SIGUSR1),
        ("rendezvous", signal.SIGINT),
    ],
    ids=lambda value: value.name if isinstance(value, signal.Signals) else value,
)
def test_a_signal_ends_a_start_at_once(place, number, start_waiting, tmp_path):
    end = stopped_by(start_waiting(place, *PLACES[place]), number)
    assert end.code == CODES[number]
    assert f"stopped by {number.name} before the first step" in end.stderr
    assert "Traceback" not in end.stderr and "lost contact" not in end.stderr
    run = tmp_path / "run"
    assert not (run / "checkpoints" / "latest").exists()
    if place == "first_step":
        found = json.loads((run / "status.json").read_text())
        assert (found["state"], found["cause"], found["step"]) == ("stopped", number.name, 0)


def test_an_interrupt_of_a_start_is_one_line(start_waiting):
    end = stopped_by(start_waiting("hashing"), signal.SIGINT)
    assert end.code == 130
    assert [line for line in end.stderr.splitlines() if "Traceback" in line] == []
    assert end.stderr.splitlines()[-1] == "error: interrupted"


def test_a_start_that_was_stopped_can_be_repeated(start_waiting, launcher, rooms_yaml, tmp_path):
    stopped_by(start_waiting("first_step", "run.steps=3"), signal.SIGUSR1)
    arguments = (f"run.out={tmp_path / 'run'}", "run.steps=3", "run.resume=auto")
    end = launcher.train(rooms_yaml, *arguments).finish()
    assert end.code == 0, end.stderr[-4000:]
    assert read_status(tmp_path / "run")["state"] == "finished"


@contextlib.contextmanager
def silent_server():
    """A server that takes connections and requests, and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        connections, connected = [], threading.Event()

        def accept():
            with contextlib.suppress(OSError):
                while True:
                    connections.append(server.accept()[0])
                    connected.set()

        threading.Thread(target=accept, daemon=True).start()
        yield server.getsockname()[1], connected
        for connection in connections:
            connection.close()


def test_while_remote_data_are_opened(launcher, rooms_yaml, tmp_path):
    with silent_server() as (port, connected):
        process = launcher.train(
            rooms_yaml, f"run.out={tmp_path / 'run'}", f"data.shards=http://127.0.0.1:{port}/shards"
        )
        assert connected.wait(120)
        assert stopped_by(process, signal.SIGTERM).code == 143
    assert not (tmp_path / "run").exists()


def test_while_another_start_holds_the_folder(launcher, rooms_yaml, tmp_path):
    held = lock(tmp_path / "run" / "lock")
    StatusFile(tmp_path / "run").write("running", step=3)
    before = (tmp_path / "run" / "status.json").read_bytes()
    process = launcher.train(rooms_yaml, f"run.out={tmp_path / 'run'}", "run.resume=auto")
    process.wait_for(process._outputs[1], text="waiting until it ends")
    assert stopped_by(process, signal.SIGTERM).code == 143
    assert (tmp_path / "run" / "status.json").read_bytes() == before, "that of the other start"
    held.release()


@pytest.mark.parametrize("number", [signal.SIGUSR1, signal.SIGTERM], ids=lambda n: n.name)
def test_one_of_two_ranks(number, start_waiting, tmp_path):
    """The other is ended by the launcher, and does not report that it has lost contact."""
    process = start_waiting("first_step", engine="ddp_cpu")
    workers = [process.worker(rank) for rank in (0, 1)]
    end = stopped_by(process, number, target=workers[1])
    assert end.code == 1  # of the launcher
    errors = [line for line in end.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1 and f"stopped by {number.name} before the first step" in errors[0]
    assert not any(psutil.pid_exists(worker.pid) for worker in workers)
    assert read_status(tmp_path / "run")["state"] == "stopped"


def test_the_status_shows_the_step_of_the_save(launcher, rooms_yaml, tmp_path):
    """Also where it is not one that is logged."""
    out = tmp_path / "run"
    options = ("run.steps=100000", "log.every=1000", "run.checkpoint_every=3")
    process = launcher.train(rooms_yaml, f"run.out={out}", *options)
    process.wait_for(out / "checkpoints" / "latest")
    process.send(signal.SIGTERM)
    end = process.finish()
    assert end.code == 0, end.stderr[-4000:]
    found = read_status(out)
    step = int((out / "checkpoints" / "latest").read_text().removeprefix("step-"))
    assert (found["state"], found["cause"], found["step"]) == ("preempted", "SIGTERM", step)
    assert found["samples"] == 8 * step and found["checkpoint"] == f"step-{step:09d}"


def test_a_run_that_is_killed_is_lost(launcher, rooms_yaml, tmp_path):
    out = tmp_path / "run"
    process = launcher.train(rooms_yaml, f"run.out={out}", "run.steps=100000")
    process.wait_for_step(out, 3)
    process.wait_for(out / "status.json", text='"running"')
    process.kill()
    shown = launcher.dmtg("status", str(out))
    assert shown.code == 1 and shown.stdout.startswith("lost: step ")
    assert "has ended" in shown.stdout and "running" not in shown.stdout


@pytest.mark.parametrize("error", ["a short one", "x" * 5000])
def test_the_end_of_a_run_on_a_full_disk(error, tmp_path, monkeypatch):
    """The file is overwritten: there is no space for another one."""
    StatusFile(tmp_path).write("running", step=3, num_steps=9, losses={"a": 1.0, "b": 2.0})

    def full(*_arguments, **_options):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    size = (tmp_path / "status.json").stat().st_size
    monkeypatch.setattr(status_module, "atomic_write", full)
    StatusFile(tmp_path).write("running", step=4)
    assert read_status(tmp_path)["step"] == 3
    StatusFile(tmp_path).fail(error)
    found = read_status(tmp_path)
    assert (found["state"], found["step"]) == ("failed", 3)
    assert found["error"].removesuffix("...") == error[: len(found["error"].removesuffix("..."))]
    assert len(found["error"]) >= min(len(error), 20)
    assert (tmp_path / "status.json").stat().st_size == size
