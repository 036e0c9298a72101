"""Work in several processes: ordered, drawn as needed, and ended when a process dies."""

import importlib
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

FAST = 20  # seconds that suffice to start two processes on a busy machine

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


def test_a_quick_item_does_not_overtake_a_slow_one(tmp_path, monkeypatch):
    source = "import time\ndef slow(seconds):\n    time.sleep(seconds)\n    return seconds\n"
    (tmp_path / "slow_work.py").write_text(source)
    monkeypatch.syspath_prepend(tmp_path)
    slow = importlib.import_module("slow_work").slow
    with mapped(slow, [0.5, 0, 0.1, 0], 2) as results:
        assert list(results) == [0.5, 0, 0.1, 0]


@pytest.mark.parametrize("workers", [1, 2])
def test_a_fault_reaches_the_caller(workers):
    with (
        pytest.raises(ZeroDivisionError),
        mapped(partial(operator.truediv, 1), [1, 0, 1], workers) as results,
    ):
        list(results)


def test_a_killed_worker_is_an_error():
    start = time.monotonic()
    with (
        pytest.raises(
            DataError,
            match=r"a worker was killed \(out of memory\?\); run the command again to continue",
        ),
        mapped(signal.raise_signal, [0, signal.SIGKILL, 0], 2) as results,
    ):
        list(results)
    assert time.monotonic() - start < FAST


def test_leaving_the_block_does_not_wait_for_the_work():
    start = time.monotonic()
    with (
        pytest.raises(KeyboardInterrupt),
        mapped(time.sleep, [0] + [600] * 100, 2) as results,
    ):
        next(results)
        raise KeyboardInterrupt
    assert time.monotonic() - start < FAST


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
        assert process.communicate(timeout=FAST) == ("", None)
