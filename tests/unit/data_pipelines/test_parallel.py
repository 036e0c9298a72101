"""Work in several processes: order, reading ahead, and the end of processes."""

import importlib
import multiprocessing
import operator
import signal
import subprocess
import sys
import time
from functools import partial
from itertools import count, islice

import pytest

from data_pipelines.errors import DataError
from data_pipelines.parallel import mapped

LONG = 600  # seconds of one item of work that must not be waited for
LIMIT = LONG // 2  # seconds after which a test that waits for it fails instead of hanging


@pytest.fixture
def limited():
    """Fail a test that waits for the work; its processes start in a small part of the limit."""

    def fail(*_):
        raise AssertionError("waited for the work")

    previous = signal.signal(signal.SIGALRM, fail)
    signal.alarm(LIMIT)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, previous)


COUNTING = """
from data_pipelines.parallel import add_progress
def work(item):
    for _ in range(item):
        add_progress(2)
    return item
"""

WORK = """
import time
def work(item):
    folder, number, waits_for = item
    (folder / str(number)).touch()
    while waits_for is not None and not (folder / str(waits_for)).exists():
        time.sleep(0.01)
    return number
"""

SCRIPT = """
import sys, time
from data_pipelines.parallel import mapped
if __name__ == "__main__":
    with mapped(time.sleep, [0] * 8 + [600] * 100, 2) as results:
        for _ in range(8):
            next(results)
        print("working", flush=True)
        next(results)
"""


@pytest.mark.parametrize("workers", [1, 2])
def test_results_come_in_the_order_of_endless_items(workers):
    drawn = []
    items = (drawn.append(n) or n for n in count())
    with mapped(partial(operator.mul, 3), items, workers) as results:
        assert list(islice(results, 50)) == list(range(0, 150, 3))
    assert len(drawn) < 50 + 10 * workers


def test_results_keep_the_order_of_slow_items(tmp_path, monkeypatch):
    """Items 0 and 2 end only after the items that follow them have begun."""
    (tmp_path / "slow_work.py").write_text(WORK)
    monkeypatch.syspath_prepend(tmp_path)
    work = importlib.import_module("slow_work").work
    items = [(tmp_path, 0, 1), (tmp_path, 1, None), (tmp_path, 2, 3), (tmp_path, 3, None)]
    with mapped(work, items, 2) as results:
        assert list(results) == [0, 1, 2, 3]


@pytest.mark.parametrize("workers", [1, 2])
def test_progress_inside_of_items_is_reported(tmp_path, monkeypatch, workers):
    (tmp_path / f"counting{workers}.py").write_text(COUNTING)
    monkeypatch.syspath_prepend(tmp_path)
    work = importlib.import_module(f"counting{workers}").work
    reported = []
    with mapped(work, [3, 0, 4], workers, reported.append) as results:
        assert list(results) == [3, 0, 4]
    assert sum(reported) == 2 * 7
    work(5)  # outside of `mapped` nothing listens
    assert sum(reported) == 2 * 7


@pytest.mark.parametrize("workers", [1, 2])
def test_an_exception_reaches_the_caller(workers):
    with (
        pytest.raises(ZeroDivisionError),
        mapped(partial(operator.truediv, 1), [1, 0, 1], workers) as results,
    ):
        list(results)


@pytest.mark.usefixtures("limited")
def test_a_killed_worker_is_an_error():
    with (
        pytest.raises(
            DataError,
            match=r"a worker was killed \(out of memory\?\); run the command again to continue",
        ),
        mapped(signal.raise_signal, [0, signal.SIGKILL, 0], 2) as results,
    ):
        list(results)


@pytest.mark.usefixtures("limited")
def test_leaving_the_block_does_not_wait_for_the_work():
    others = multiprocessing.active_children()
    with (
        pytest.raises(KeyboardInterrupt),
        mapped(time.sleep, [0] + [LONG] * 100, 2) as results,
    ):
        next(results)
        raise KeyboardInterrupt
    assert set(multiprocessing.active_children()) <= set(others)


def test_workers_end_with_their_parent(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    with subprocess.Popen(
        [sys.executable, str(script)],
        stdout=subprocess.PIPE,
        text=True,
        env={"PYTHONPATH": ":".join(filter(None, sys.path))},
    ) as process:
        assert process.stdout.readline() == "working\n"
        process.kill()
        # The workers hold the same pipe: it ends when the last of them does
        assert process.communicate(timeout=LIMIT) == ("", None)
