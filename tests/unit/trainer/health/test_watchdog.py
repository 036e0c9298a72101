"""What makes the watchdog end a process, and what does not."""

import faulthandler
import logging
import os
import threading
import time

import pytest
import torch.distributed as dist

from trainer.health import watchdog
from trainer.health.watchdog import Watchdog, current_activity, first_line, report_progress


class Clock:
    """A clock that only moves when it is told to, and the times that a watchdog has looked."""

    def __init__(self) -> None:
        self.now, self.looks = 1000.0, 0

    def monotonic(self):
        return self.now

    def look(self):
        """Let the watchdog look from begin to end."""
        before = self.looks
        wait_until(lambda: self.looks >= before + 2)


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()

    def begin_look(*_, **__):
        clock.looks += 1

    monkeypatch.setattr(watchdog, "time", clock)
    monkeypatch.setattr(faulthandler, "dump_traceback_later", begin_look)
    return clock


@pytest.fixture
def started(clock, monkeypatch):  # noqa: ARG001 - time must not pass by itself
    """A watchdog with fast heartbeats, and the messages of its failures."""
    monkeypatch.setattr(watchdog, "HEARTBEAT_SECONDS", 0.02)
    messages, dogs = [], []

    def fail(message):
        messages.append(message)
        raise SystemExit  # of its thread, as the process ends

    def run(stall_seconds, peers=None, report_after=None):
        dog = Watchdog(fail)
        dog.peers = peers
        dogs.append(dog)
        dog.start(stall_seconds, report_after)
        return dog, messages

    yield run
    for dog in dogs:
        dog.stop()


def wait_until(condition, seconds=20):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


def test_progress_keeps_a_process_alive(started, clock):
    _, messages = started(0.5)
    for _ in range(3):
        report_progress("step 3, training")
        clock.now += 0.4
        clock.look()
    assert messages == [] and current_activity() == "step 3, training"
    clock.now += 0.2
    wait_until(lambda: messages)
    assert messages[0] == (
        "no progress for 0.5 s (run.stall_seconds) at step 3, training; the stacks are above"
    )


def test_the_stacks_are_shown(started, clock, capfd):
    _, messages = started(0.1)
    clock.now += 0.2
    wait_until(lambda: messages)
    assert "in test_the_stacks_are_shown" in capfd.readouterr().err


def test_a_launcher_that_is_gone(started, clock, monkeypatch):
    monkeypatch.setattr(dist, "is_initialized", lambda: True)
    monkeypatch.setattr(dist, "get_world_size", lambda: 1)
    _, messages = started(60.0)
    clock.look()
    assert messages == []
    parent = os.getppid()
    monkeypatch.setattr(os, "getppid", lambda: 1)
    wait_until(lambda: messages)
    assert messages[0] == f"the launcher (process {parent}) has ended"


class Fake:
    failed_since = None

    def __init__(self):
        self.told, self.error, self.heartbeats = [], None, 0

    def find_missing(self):
        if self.error is not None:
            raise self.error
        return "no heartbeat from rank 1"

    def send_heartbeat(self, what):
        self.heartbeats += 1
        if self.error is not None:
            raise self.error
        self.told.append(what)


def test_a_heartbeat_holds_the_activity(started):
    peers = Fake()
    started(60.0, peers)
    report_progress("step 9, training")
    wait_until(lambda: "step 9, training" in peers.told)


def test_another_rank_has_failed(started, clock, monkeypatch):
    """There is time to end by oneself, and no more."""
    monkeypatch.setattr(watchdog, "_GRACE", 0.3)
    peers = Fake()
    _, messages = started(60.0, peers)
    peers.failed_since = clock.now
    clock.now += 0.2
    clock.look()
    assert messages == []
    clock.now += 0.2
    wait_until(lambda: messages)
    assert messages[0] == "another rank has failed"


@pytest.mark.parametrize(
    ("error", "cause"),
    [
        (None, "no heartbeat from rank 1"),
        (dist.DistNetworkError("gone"), "the rendezvous host does not answer either, gone"),
    ],
)
def test_it_reports_before_the_process_is_ended_by_others(error, cause, started, clock):
    peers = Fake()
    peers.error = error
    report_progress("step 4, training")
    _, messages = started(60.0, peers, report_after=0.2)
    report_progress("step 4, training")
    clock.look()
    assert messages == []
    clock.now += 0.3
    wait_until(lambda: messages)
    assert messages[0] == f"lost contact with other ranks at step 4, training: {cause}"


def test_a_store_that_does_not_answer_ends_nothing(started, caplog):
    peers = Fake()
    peers.error = dist.DistNetworkError("Broken pipe\nand a stack")
    with caplog.at_level(logging.WARNING):
        _, messages = started(60.0, peers)
        wait_until(lambda: peers.heartbeats > 3)
        peers.error = None
        wait_until(lambda: peers.told)
    assert [r.getMessage() for r in caplog.records] == [
        "the rendezvous host does not answer: Broken pipe"
    ]
    assert messages == []


def test_after_the_stop_nothing_ends_the_process(started, clock, monkeypatch):
    cancelled = []
    cancel = faulthandler.cancel_dump_traceback_later
    monkeypatch.setattr(
        faulthandler, "cancel_dump_traceback_later", lambda: cancelled.append(cancel())
    )
    before = threading.active_count()
    dog, messages = started(0.2)
    assert threading.active_count() > before
    dog.stop()
    assert cancelled
    wait_until(lambda: threading.active_count() == before)
    clock.now += 60.0
    assert messages == []


def test_first_line():
    assert first_line(RuntimeError("one\ntwo")) == "one"
    assert first_line(RuntimeError()) == ""
    assert first_line(RuntimeError("x" * 500)) == "x" * 157 + "..."
