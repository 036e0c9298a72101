"""The progress on a terminal and elsewhere, and log lines above the bar."""

import io
import logging
import sys

import pytest

from trainer.monitoring import progress
from trainer.monitoring.progress import AboveBar, ProgressBar


class Screen(io.StringIO):
    """What a terminal gets."""

    def isatty(self):
        return True

    def fileno(self):
        raise io.UnsupportedOperation


@pytest.fixture
def screen(monkeypatch):
    """Puts a terminal in the place of standard error, which pytest would set again by itself."""

    def begin():
        screen = Screen()
        monkeypatch.setattr(sys, "stderr", screen)
        return screen

    return begin


def test_the_bar_of_a_terminal(screen):
    shown = screen()
    bar = ProgressBar(10, 2, enabled=True)
    bar.advance(7, {"loss": "0.5", "temperature": "1.25"})
    bar.close()
    last = shown.getvalue().split("\r")[-1]
    assert last.startswith("step 7/10  70% |") and " left, loss 0.5, temperature 1.25" in last
    assert all(len(line) <= 80 for line in shown.getvalue().split("\r"))


def test_a_line_of_the_log_stands_above_the_bar(screen):
    shown = screen()
    logger = logging.getLogger("test.progress")
    handler = AboveBar()
    logger.addHandler(handler)
    logger.propagate = False
    bar = ProgressBar(10, 0, enabled=True)
    bar.advance(5, {"loss": "0.5"})
    try:
        logger.warning("a line of the log")
    finally:
        logger.removeHandler(handler)
        bar.close()
    text = shown.getvalue()
    line = next(line for line in text.split("\n") if "a line of the log" in line)
    assert line.split("\r")[-1] == "a line of the log", "the bar was cleared before"
    assert "step 5/10" in text.split("a line of the log\n")[1], "and is drawn again below"


def test_lines_without_a_terminal(monkeypatch, caplog):
    caplog.set_level(logging.INFO)
    now = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    stderr = io.StringIO()
    monkeypatch.setattr(sys, "stderr", stderr)
    bar = ProgressBar(100, 20, enabled=True)
    for step, seconds in ((21, 1), (30, 31), (31, 32), (100, 40)):
        now[0] = seconds
        bar.advance(step, {"loss": f"{step}"})
    bar.close()
    assert caplog.messages == [
        "step 30 of 100, 0:03:37 left, loss 30",
        "step 100 of 100, loss 100",
    ]
    assert stderr.getvalue() == ""


def test_nothing_is_shown_if_it_is_switched_off(screen, caplog):
    shown = screen()
    caplog.set_level(logging.INFO)
    bar = ProgressBar(10, 0, enabled=False)
    bar.advance(10, {"loss": "0.5"})
    assert list(bar.track([], 5, 1)) == []
    bar.close()
    assert shown.getvalue() == "" and caplog.messages == []
