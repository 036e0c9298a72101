"""Measure what pruning saves during training, on Taskonomy's five published tasks on rooms.

python benchmarks/pruning.py [--steps 300]

Two runs have the same data, initial parameters and updates of the grouping; one of them prunes, the
other one never switches off a head. Writes docs/results/pruning.json, pruning.md and pruning.png;
the exit code is 1 if a claim does not hold. It takes about five minutes on two cores.
"""

from __future__ import annotations

import argparse
import itertools
import json
import logging
import os
import platform
import statistics
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import matplotlib.pyplot as plt
import torch

from data_pipelines.reading.collate import Batch
from data_pipelines.synthetic.rooms import write_rooms
from trainer.config.config import Config
from trainer.config.loading import parse_config
from trainer.engines.accelerator import make_accelerator
from trainer.loop import train
from trainer.session import Session, start_session

OUT = Path(__file__).resolve().parent.parent / "docs" / "results"
# Limits: time of the pruned run / time of the unpruned run, relative difference of the losses.
MAX_TIME_RATIO, MAX_LOSS_DIFFERENCE = 0.65, 0.02
LAST = 30  # steps over which the final losses are averaged


@dataclass(frozen=True)
class Run:
    """The measurements of a run.

    Attributes:
        seconds: Seconds from the first to the last step.
        steps: Seconds of every step, including the pruning and compaction after it.
        heads: Number of heads of the network in every step.
        losses: Mean loss of every task over the last steps.
    """

    seconds: float
    steps: list[float]
    heads: list[int]
    losses: dict[str, float]


def settings(shards: Path, out: Path, steps: int) -> Config:
    """Return a small configuration with three branches and the published decoders."""
    resnet = {
        "model_type": "resnet",
        "embedding_size": 32,
        "hidden_sizes": [32, 48, 64],  # 1/16 of the image size, as in the published encoder
        "depths": [1, 1, 1],
        "layer_type": "basic",
    }
    tree = {
        "run": {"out": str(out), "steps": steps, "checkpoint_every": 10 * steps},
        "data": {"shards": str(shards), "image_size": [64, 64], "global_batch": 16},
        "tasks": {"preset": "taskonomy5"},
        "model": {
            "branches": 3,
            "decoder": "deconv",
            "encoder": {"name": "backbone", "options": resnet},
        },
        "pruning": {"begin": 0.15, "end": 0.4, "every": 10},
        "optim": {"lr": 1e-3, "warmup_steps": 20, "max_grad_norm": 5.0},
        "log": {"every": 1, "trackers": []},
    }
    return parse_config(tree, "benchmarks/pruning.py")


def measure(config: Config, *, prunes: bool) -> Run:
    """Train a run and return its measurements."""
    starts, heads = [], []

    def observe(session: Session, _: list[Batch]) -> None:
        starts.append(time.perf_counter())
        heads.append(len(session.engine.module.heads))

    with start_session(config, make_accelerator(config)) as session:
        if not prunes:
            session.learner.prune = lambda _: []  # type: ignore[method-assign]
        train(session, observe)
    steps = [later - earlier for earlier, later in itertools.pairwise(starts)]
    lines = session.folder.metrics.read_text().splitlines()
    records = [r["losses"] for line in lines if (r := json.loads(line))["kind"] == "train"]
    losses = {n: statistics.fmean(r[n] for r in records[-LAST:]) for n in records[-1]}
    return Run(starts[-1] - starts[0], steps, heads, losses)


def table(runs: dict[str, Run]) -> str:
    """Return the runs as a Markdown table."""
    tasks = list(runs["pruned"].losses)
    lines = [
        f"| | seconds | ms of a step, first tenth | last tenth | {' | '.join(tasks)} |",
        f"|---|---|---|---|{'---|' * len(tasks)}",
    ]
    for name, run in runs.items():
        tenth = max(1, len(run.steps) // 10)
        ends = (run.steps[:tenth], run.steps[-tenth:])
        times = " | ".join(f"{1e3 * statistics.median(part):.0f}" for part in ends)
        losses = " | ".join(f"{value:.4f}" for value in run.losses.values())
        lines.append(f"| {name} | {run.seconds:.1f} | {times} | {losses} |")
    return "\n".join(lines)


def draw(runs: dict[str, Run], path: Path) -> None:
    """Plot the time of every step and the number of heads of the network."""
    figure, axis = plt.subplots(figsize=(8, 4))
    heads = axis.twinx()
    for name, run in runs.items():
        axis.plot([1e3 * seconds for seconds in run.steps], linewidth=0.7, label=f"{name}, ms")
    heads.plot(runs["pruned"].heads, color="black", linewidth=1.5, label="pruned, heads")
    heads.set_ylim(0)
    heads.set_ylabel("heads in the network")
    axis.set_ylim(0, 1.5e3 * max(statistics.median(run.steps) for run in runs.values()))
    axis.set_xlabel("step")
    axis.set_ylabel("ms of a step")
    figure.legend(loc="lower left", bbox_to_anchor=(0.1, 0.12))
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    plt.close(figure)


def faults(time_ratio: float, differences: dict[str, float]) -> list[str]:
    """Return the claims that do not hold."""
    failed = [
        f"final loss of {task} differs by {value:+.1%} of the unpruned run's"
        for task, value in differences.items()
        if abs(value) > MAX_LOSS_DIFFERENCE
    ]
    if time_ratio > MAX_TIME_RATIO:
        failed.append(f"the pruned run takes {time_ratio:.2f} of the unpruned one's time")
    return failed


def main() -> int:
    """Measure, write the results and return 1 if a claim does not hold."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=300)
    steps = parser.parse_args().steps
    logging.disable(logging.INFO)
    plt.switch_backend("Agg")
    with tempfile.TemporaryDirectory() as folder:
        shards = Path(folder) / "shards"
        write_rooms(shards, samples=600, image_size=64, seed=0)
        runs = {
            name: measure(settings(shards, Path(folder) / name, steps), prunes=name == "pruned")
            for name in ("unpruned", "pruned")
        }
    pruned, unpruned = runs["pruned"], runs["unpruned"]
    time_ratio = pruned.seconds / unpruned.seconds
    differences = {t: value / unpruned.losses[t] - 1 for t, value in pruned.losses.items()}
    text = f"{table(runs)}\n\nThe pruned run takes {time_ratio:.2f} of the unpruned one's time.\n"
    sys.stdout.write(text)
    OUT.mkdir(parents=True, exist_ok=True)
    command = f"`python benchmarks/pruning.py --steps {steps}`"
    head = (
        f"# Pruning while training\n\nMade by {command}, which says what is compared; losses are "
    )
    (OUT / "pruning.md").write_text(
        f"{head}means over the last {LAST} steps.\n\n{text}\n![time of a step](pruning.png)\n"
    )
    (OUT / "pruning.json").write_text(f"{json.dumps(_record(runs, time_ratio, differences))}\n")
    draw(runs, OUT / "pruning.png")
    failed = faults(time_ratio, differences)
    for line in failed:
        sys.stderr.write(f"claim does not hold: {line}\n")
    return 1 if failed else 0


def _record(
    runs: dict[str, Run], time_ratio: float, differences: dict[str, float]
) -> dict[str, Any]:
    machine = f"{os.cpu_count()} cores, {platform.machine()}, torch {torch.__version__}"
    measured = {
        name: {
            "seconds": round(run.seconds, 2),
            "step_ms": [round(1e3 * seconds, 1) for seconds in run.steps],
            "heads": run.heads,
            "losses": run.losses,
        }
        for name, run in runs.items()
    }
    return {
        "machine": machine,
        "share": time_ratio,
        "loss_differences": differences,
        **measured,
    }


if __name__ == "__main__":
    sys.exit(main())
