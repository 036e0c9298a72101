"""Measure how the time of a step and its lower bound grow with the number of tasks.

python benchmarks/growth.py

The network has eight branches of the published encoder for images of 32 pixels, and heads for 10 to
2,000 tasks on each branch. Writes docs/results/growth.json and growth.png; the exit code is 1 if
the growth is not linear. It takes about two minutes on two cores.
"""

from __future__ import annotations

import json
import logging
import os
import platform
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import matplotlib.pyplot as plt
import numpy as np
import torch

from trainer.bench.case import StepCase, our_step
from trainer.bench.floor import Rates, measure_rates, timed
from trainer.bench.step import num_weights, step_flops

OUT = Path(__file__).resolve().parent.parent / "docs" / "results"
TASKS = (10, 25, 50, 100, 200, 350, 500, 750, 1000, 1500, 2000)
BRANCHES, BATCH, SIZE = 8, 64, 32
REPEATS = 15
MIN_LINEAR = 0.99  # minimum fraction of the variance that a straight line explains


def measure(tasks: int, rates: Rates) -> dict[str, float]:
    """Return the minimum milliseconds of a step over the repeats, and their lower bound.

    The minimum is the time with the least disturbance by other programs.
    """
    case = StepCase("residual64", tasks, BRANCHES, BATCH, SIZE)
    with our_step(case) as (step, network):
        step()
        step()
        seconds = min(timed(step, case.device) for _ in range(REPEATS))
        flops, weights = step_flops(case, network, step), num_weights(case, network)
    floor_ms = rates.floor_ms(flops, weights, optimizer=True)
    return {"tasks": tasks, "step_ms": seconds * 1e3, "floor_ms": floor_ms}


def line(rows: list[dict[str, float]], key: str) -> dict[str, float]:
    """Fit a line to the times; return it with the fraction of the variance that it explains."""
    tasks, times = (np.array([row[name] for row in rows]) for name in ("tasks", key))
    slope, intercept = np.polyfit(tasks, times, 1)
    residuals = times - (intercept + slope * tasks)
    return {
        "ms_per_task": float(slope),
        "ms_at_zero": float(intercept),
        "explained": float(1 - residuals.var() / times.var()),
    }


def draw(record: dict[str, Any], path: Path) -> None:
    """Plot the times and lower bounds over the number of tasks, with the fitted lines."""
    rows = record["rows"]
    figure, axis = plt.subplots(figsize=(7, 4.2))
    tasks = np.array([row["tasks"] for row in rows])
    for key, name, color in (("step_ms", "step", "C0"), ("floor_ms", "floor", "C1")):
        fit = record[key]
        label = f"{name}: {fit['ms_at_zero']:.0f} ms + {fit['ms_per_task']:.3f} ms per task"
        axis.plot(tasks, [row[key] for row in rows], "o", color=color, label=label)
        axis.plot(tasks, fit["ms_at_zero"] + fit["ms_per_task"] * tasks, color=color, lw=0.8)
    axis.set_xlabel(f"tasks, each with a head on {BRANCHES} branches")
    axis.set_ylabel("ms per step")
    axis.set_ylim(bottom=0)
    axis.set_title(f"one training step, {record['machine']}", fontsize=9)
    axis.legend()
    figure.tight_layout()
    figure.savefig(path, dpi=110)


def main() -> int:
    """Measure, write the results and return 1 if the growth is not linear."""
    logging.disable(logging.INFO)
    plt.switch_backend("Agg")
    rates = measure_rates(
        torch.device("cuda" if torch.cuda.is_available() else "cpu"), torch.float32
    )
    rows = [measure(tasks, rates) for tasks in TASKS]
    threads = f"{torch.get_num_threads()} threads of {os.cpu_count()} cores"
    record = {
        "command": "python benchmarks/growth.py",
        "machine": f"{threads}, {platform.machine()}, torch {torch.__version__}",
        "branches": BRANCHES,
        "batch": BATCH,
        "size": SIZE,
        "matmul_gflops": rates.flops / 1e9,
        "copy_gbps": rates.traffic / 1e9,
        "rows": rows,
        "step_ms": line(rows, "step_ms"),
        "floor_ms": line(rows, "floor_ms"),
    }
    OUT.mkdir(parents=True, exist_ok=True)
    (OUT / "growth.json").write_text(f"{json.dumps(record, indent=1)}\n")
    draw(record, OUT / "growth.png")
    sys.stdout.write(f"{json.dumps(record, indent=1)}\n")
    return 0 if record["step_ms"]["explained"] >= MIN_LINEAR else 1


if __name__ == "__main__":
    sys.exit(main())
