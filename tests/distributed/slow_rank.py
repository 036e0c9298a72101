"""Train like trainer/main.py by clocks of the test's own, on which rank 1 reads slowly.

Usage: slow_rank.py SECONDS --config FILE run.out=FOLDER [section.key=value ...]

Every look at a clock takes a millisecond, or two seconds where reports are spaced, and every sample
that rank 1 reads takes SECONDS. What `status.json` held after every write is kept, one JSON object
a line, in `statuses.jsonl` beside it.
"""

import json
import os
import runpy
import sys
from pathlib import Path
from types import SimpleNamespace

import trainer.monitoring.monitor
import trainer.monitoring.timing
from data_pipelines.reading.dataset import ShardDataset
from trainer.monitoring.status import StatusFile

MAIN = Path(__file__).resolve().parents[2] / "trainer" / "main.py"


class Clock:
    """A clock that advances by so many seconds whenever it is read."""

    def __init__(self, tick: float) -> None:
        self.now, self._tick = 1000.0, tick

    def __call__(self) -> float:
        self.now += self._tick
        return self.now


def read_slowly(clock: Clock, seconds: float) -> None:
    read = ShardDataset.__getitem__

    def slow_read(dataset, item):
        clock.now += seconds
        return read(dataset, item)

    ShardDataset.__getitem__ = slow_read


def keep_statuses(out: Path) -> None:
    write = StatusFile.write

    def write_and_keep(status, *arguments, **values):
        write(status, *arguments, **values)
        if not out.is_dir():
            return
        with open(out / "statuses.jsonl", "a") as file:
            file.write(json.dumps(json.loads((out / "status.json").read_text())) + "\n")

    StatusFile.write = write_and_keep


def main(seconds: str, *arguments: str) -> None:
    clock = Clock(1e-3)
    trainer.monitoring.timing.time = SimpleNamespace(perf_counter=clock)
    trainer.monitoring.monitor.time = SimpleNamespace(monotonic=Clock(2.0))
    if os.environ["RANK"] == "1":
        read_slowly(clock, float(seconds))
    else:
        (out,) = (Path(a.partition("=")[2]) for a in arguments if a.startswith("run.out="))
        keep_statuses(out)
    sys.argv = [str(MAIN), *arguments]
    runpy.run_path(str(MAIN), run_name="__main__")


if __name__ == "__main__":
    main(*sys.argv[1:])
