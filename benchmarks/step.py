"""Compare time and memory of a step with the published formulation on this machine.

python benchmarks/step.py

Runs `dmtg bench step` for every case and writes benchmarks/results/step.json; the exit code is 1
if a claim does not hold. It takes about three minutes on two idle cores.
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
# options of the command, minimum time ratio, maximum memory ratio (None: not claimed)
CASES = (
    ("--encoder none --tasks 1000 --branches 10 --features 512 --batch 64", 40.0, None),
    ("--encoder residual64 --tasks 9 --branches 2 --batch 64 --size 64", 2.0, None),
    ("--encoder residual64 --tasks 40 --branches 4 --batch 64 --size 64", 2.2, None),
    ("--encoder residual64 --tasks 200 --branches 8 --batch 64 --size 64", 3.5, 0.6),
)

logger = logging.getLogger(__name__)


def measure(options: str) -> dict[str, Any]:
    """Run the command and return its JSON result, with the command."""
    code = "from trainer.commands.app import main; main()"
    program = [sys.executable, "-c", code, "bench", "step"]
    result = subprocess.run(
        [*program, *shlex.split(options), "--json"], cwd=ROOT, stdout=subprocess.PIPE, check=True
    )
    return {
        "command": f"dmtg bench step {options} --json",
        **json.loads(result.stdout.splitlines()[-1]),
    }


def main() -> int:
    """Measure, write the results and return 1 if a claim does not hold."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    rows, failed = [], []
    for options, min_ratio, max_memory_ratio in CASES:
        row = measure(options)
        rows.append(row)
        logger.info("%s: %.2f, memory %.2f", options, row["ratio"], row["memory_ratio"])
        if row["ratio"] < min_ratio:
            failed.append(f"{options}: {row['ratio']:.2f} times as fast, claimed {min_ratio}")
        if max_memory_ratio is not None and row["memory_ratio"] > max_memory_ratio:
            failed.append(
                f"{options}: {row['memory_ratio']:.2f} of the memory, claimed {max_memory_ratio}"
            )
    RESULTS.write_text(f"{json.dumps(rows, indent=1)}\n")
    for line in failed:
        logger.error("claim does not hold: %s", line)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
