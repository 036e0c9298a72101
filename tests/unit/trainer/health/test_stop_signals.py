"""Which signals end a start, which are only recorded, and which belong to another process."""

import contextlib
import os
import signal
import threading
import time

import pytest

from trainer.health import stop_signals
from trainer.health.stop_signals import (
    defer_signals,
    end_saved,
    listening,
    received,
    stop_at_once,
)


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


@pytest.fixture
def interruptible():
    """A shell may have started the tests with SIGINT ignored, as it does in the background."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def press(number=signal.SIGINT):
    os.kill(os.getpid(), number)
    time.sleep(0.2)


@pytest.mark.usefixtures("interruptible")
@pytest.mark.parametrize("second", [signal.SIGINT, signal.SIGTERM], ids=lambda n: n.name)
def test_ctrl_c_while_a_run_trains(second, monkeypatch, caplog):
    """The first is recorded, and so are those that belong to it; the second ends the process.

    A launcher sends SIGTERM at the second.
    """
    monkeypatch.setattr(stop_signals, "_SAME_PRESS", 0.5)
    numbers = []
    with listening(numbers.append):
        defer_signals()
        press()
        press(second)
        assert "SIGINT" in received and numbers == []
        assert caplog.text.count("saving after this step; press it again to end at once") == 1
        time.sleep(0.5)
        with contextlib.suppress(KeyboardInterrupt):
            press(second)
        assert numbers == [signal.SIGINT]


@pytest.mark.usefixtures("interruptible")
def test_a_launcher_that_ends_its_processes_after_the_save(monkeypatch):
    monkeypatch.setattr(stop_signals, "_SAME_PRESS", 0.1)
    numbers = []
    with listening(numbers.append):
        defer_signals()
        press()
        end_saved()
        press(signal.SIGTERM)
        assert numbers == []


@pytest.mark.usefixtures("interruptible")
def test_in_a_notebook_the_second_raises(monkeypatch):
    monkeypatch.setattr(stop_signals, "_SAME_PRESS", 0.1)
    with listening():
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(5)
        defer_signals()
        press()
        assert received == {"SIGINT"}
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(5)


def test_a_command_in_the_background_of_a_shell_ignores_ctrl_c():
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with listening():
            press()
            assert received == set()
        assert signal.getsignal(signal.SIGINT) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)
