"""Which signals end a start, which are only recorded, and which belong to another process."""

import os
import signal
import threading
import time

import pytest

from trainer.health.stop_signals import defer_signals, listening, received, stop_at_once


@pytest.fixture
def ended():
    """The signals for which the process would have been ended."""
    numbers, called = [], threading.Event()

    def end(number):
        numbers.append(number)
        called.set()

    with listening(end):
        yield numbers, called


def test_a_signal_during_the_start_ends_the_process(ended):
    numbers, called = ended
    os.kill(os.getpid(), signal.SIGUSR1)
    assert called.wait(20) and numbers == [signal.SIGUSR1]


def test_a_deferred_signal_is_recorded_and_ends_the_next_start(ended):
    numbers, called = ended
    defer_signals()
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(0.3)
    assert received == {"SIGTERM"} and not called.is_set()
    stop_at_once()
    assert numbers == [signal.SIGTERM]


def test_a_signal_of_a_forked_process_is_its_own(ended):
    numbers, called = ended
    child = os.fork()
    if child == 0:
        os.kill(os.getpid(), signal.SIGUSR1)
        time.sleep(0.1)
        os._exit(0)
    os.waitpid(child, 0)
    assert not called.wait(0.5) and numbers == [] and received == set()


def test_nothing_is_left_afterwards():
    before = [signal.getsignal(number) for number in (signal.SIGUSR1, signal.SIGTERM)]
    with listening(lambda _: None):
        pass
    assert signal.set_wakeup_fd(-1) == -1
    assert [signal.getsignal(number) for number in (signal.SIGUSR1, signal.SIGTERM)] == before
    stop_at_once()
