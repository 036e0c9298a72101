"""Trains like trainer/main.py, but rank 1 reads every sample slowly.

Usage: slow_rank.py SECONDS --config FILE [section.key=value ...]
"""

import os
import runpy
import sys
import time
from pathlib import Path

from data_pipelines.reading.dataset import ShardDataset

MAIN = Path(__file__).resolve().parents[2] / "trainer" / "main.py"


def slow_down(seconds: float) -> None:
    read = ShardDataset.__getitem__

    def read_slowly(dataset, item):
        time.sleep(seconds)
        return read(dataset, item)

    ShardDataset.__getitem__ = read_slowly


if __name__ == "__main__":
    if os.environ["RANK"] == "1":
        slow_down(float(sys.argv[1]))
    sys.argv[:2] = [str(MAIN)]
    runpy.run_path(str(MAIN), run_name="__main__")
