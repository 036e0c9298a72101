"""Is a step as fast and small as claimed? Against the published formulation, on this machine.

python benchmarks/step.py

Runs `dmtg bench step` for every case and writes benchmarks/results/step.json; the exit code is 1
where a claim does not hold. Takes about three minutes on two cores that do nothing else.
"""

from __future__ import annotations

import json
import logging
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results" / "step.json"
# options of the command, least ratio of the times, largest ratio of the memory (None: not claimed)
CASES = (
    ("--encoder none --tasks 1000 --branches 10 --features 512 --batch 64", 40.0, None),
    ("--encoder residual64 --tasks 9 --branches 2 --batch 64 --size 64", 2.0, None),
    ("--encoder residual64 --tasks 40 --branches 4 --batch 64 --size 64", 2.2, None),
    ("--encoder residual64 --tasks 200 --branches 8 --batch 64 --size 64", 3.5, 0.6),
)

logger = logging.getLogger(__name__)


def measure(options: str) -> dict[str, Any]:
    """What the command prints as JSON, and the command."""
    run = [sys.executable, "-c", "from trainer.commands.app import main; main()", "bench", "step"]
    done = subprocess.run(
        [*run, *shlex.split(options), "--json"], cwd=ROOT, stdout=subprocess.PIPE, check=True
    )
    return {
        "command": f"dmtg bench step {options} --json",
        **json.loads(done.stdout.splitlines()[-1]),
    }


def main() -> int:
    """Measure, write and judge."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    rows, wrong = [], []
    for options, faster, smaller in CASES:
        row = measure(options)
        rows.append(row)
        logger.info("%s: %.2f, memory %.2f", options, row["ratio"], row["memory_ratio"])
        if row["ratio"] < faster:
            wrong.append(f"{options}: {row['ratio']:.2f} times as fast, claimed {faster}")
        if smaller is not None and row["memory_ratio"] > smaller:
            wrong.append(f"{options}: {row['memory_ratio']:.2f} of the memory, claimed {smaller}")
    RESULTS.write_text(f"{json.dumps(rows, indent=1)}\n")
    for line in wrong:
        logger.error("claim does not hold: %s", line)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
