"""Runs trainer/main.py with the batch statistics of all ranks, which otherwise only GPUs have."""

import runpy
import sys
from pathlib import Path

import trainer.engines.engine as engine

ROOT = Path(__file__).resolve().parents[2]

if __name__ == "__main__":
    engine._can_synchronise = lambda accelerator: accelerator.num_processes > 1
    sys.argv[0] = str(ROOT / "trainer" / "main.py")
    runpy.run_path(sys.argv[0], run_name="__main__")
