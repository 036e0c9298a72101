"""Kill a run with SIGKILL many times, resume it each time, and compare its result.

python benchmarks/faults.py [--kills N] [--seed S]

The run has one process on the CPU and saves a checkpoint after every step, alternately in the
background and in the training loop. The script kills it at random times, every second time while
an unfinished checkpoint exists, and starts it again with run.resume=auto. At the end it compares
the records and the last checkpoint byte by byte with those of an uninterrupted run.

Writes benchmarks/results/faults.json and docs/results/faults.md; the exit code is 1 if a claim does
not hold.
"""

from __future__ import annotations

import argparse
import json
import logging
import multiprocessing
import os
import platform
import random
import re
import signal
import sys
import tempfile
import time
from dataclasses import asdict, dataclass, replace
from multiprocessing.process import BaseProcess
from pathlib import Path
from statistics import fmean
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch

from data_pipelines.synthetic.rooms import write_rooms
from trainer.checkpoints.files import checkpoints, find_damage, folder_of_step
from trainer.config.loading import parse_config
from trainer.engines.accelerator import make_accelerator
from trainer.monitoring.logs import setup_logging
from trainer.run import train_run

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results" / "faults.json"
TABLE = ROOT / "docs" / "results" / "faults.md"
SAVES_AHEAD = 6  # approximate maximum of checkpoints between two kills
# A forked process needs no imports and has no state of an earlier run.
FORK = multiprocessing.get_context("fork")

logger = logging.getLogger("faults")


@dataclass(frozen=True)
class Kill:
    """One SIGKILL and its effect on the next start.

    Attributes:
        background: Whether checkpoints were written in the background.
        during_save: Whether the kill left an unfinished checkpoint.
        unreadable: Number of incomplete checkpoints with a final name.
        saved: Step of the newest checkpoint.
        done: Step of the last record in `metrics.jsonl`.
        resumed: Step from which the next start resumed; None if it did not resume.
    """

    background: bool
    during_save: bool
    unreadable: int
    saved: int
    done: int
    resumed: int | None = None


class Run:
    """A training run in a separate folder, and in a process that can be killed."""

    def __init__(self, folder: Path, shards: Path, steps: int) -> None:
        folder.mkdir()
        self.out, self.log = folder / "run", folder / "log"
        self.shards, self.steps = shards, steps
        self.checkpoints = self.out / "checkpoints"

    def start(self, background: bool = True) -> BaseProcess:
        """Start the process, which begins or resumes the run."""
        self.log.write_text("")
        process = FORK.Process(target=self._train, args=(background,))
        process.start()
        return process

    def _train(self, background: bool) -> None:
        os.dup2(os.open(self.log, os.O_WRONLY), sys.stderr.fileno())
        setup_logging(0, 1)
        torch.set_num_threads(1)
        config = parse_config(settings(self, background), "faults")
        train_run(config, make_accelerator(config))

    def newest(self) -> int:
        """Return the step of the newest checkpoint with a final name; 0 without checkpoints."""
        paths = checkpoints(self.checkpoints)
        return int(paths[-1].name.removeprefix("step-")) if paths else 0

    def is_saving(self) -> bool:
        """Return whether there is an unfinished checkpoint."""
        return any(self.checkpoints.glob("step-*.partial"))

    def unreadable(self) -> int:
        """Return the number of incomplete checkpoints with a final name."""
        return sum(find_damage(path) is not None for path in checkpoints(self.checkpoints))

    def done(self) -> int:
        """Return the step of the last complete record; 0 without records."""
        lines = (self.out / "metrics.jsonl").read_bytes().split(b"\n")[:-1]
        return int(json.loads(lines[-1])["step"]) if lines else 0

    def resumed(self) -> int | None:
        """Return the step from which the last start resumed; None if its log has no such line."""
        match = re.search(r"continuing from \S*step-(\d+)", self.log.read_text())
        return int(match[1]) if match else None

    def result(self) -> dict[str, bytes]:
        """Return the files of a finished run that are compared, by name."""
        final = folder_of_step(self.checkpoints, self.steps)
        names = ("weights", "moments", "grouping")
        files = (self.out / "metrics.jsonl", *(final / f"{name}.safetensors" for name in names))
        return {path.name: path.read_bytes() for path in files}


def settings(run: Run, background: bool) -> dict[str, Any]:
    """Return the settings of a run with checkpoints of 1 MB, which prunes its network."""
    options = {
        "model_type": "convnextv2", "hidden_sizes": [16, 32], "depths": [1, 1], "patch_size": 4,
        "num_stages": 2,
    }  # fmt: skip
    return {
        "run": {
            "out": str(run.out), "steps": run.steps, "resume": "auto", "precision": "fp32",
            "checkpoint_every": 1, "async_checkpoint": background,
        },
        "data": {
            "shards": str(run.shards), "image_size": [32, 32], "global_batch": 8, "workers": 0,
        },
        "tasks": {"names": ["depth_zbuffer", "normal", "has_sphere", "camera_pitch"]},
        "model": {
            "branches": 3, "dense_widths": [8], "encoder": {"name": "backbone", "options": options},
        },
        "eval": {"limit": 4},
        "log": {"every": 1, "trackers": [], "progress": False},
    }  # fmt: skip


def kill(run: Run, rng: random.Random, *, background: bool, aimed: bool) -> Kill | None:
    """Kill a run after a few checkpoints; return None if it ends before.

    Args:
        run: Run to start and kill.
        rng: Generator of the times.
        background: Whether the run writes checkpoints in the background.
        aimed: Whether to wait for an unfinished checkpoint before the kill.
    """
    process = run.start(background)
    target = run.newest() + 1 + rng.randrange(SAVES_AHEAD)
    while process.is_alive() and run.newest() < target:
        time.sleep(0.001)
    time.sleep(rng.uniform(0, 0.1))
    while process.is_alive() and aimed and not run.is_saving():
        time.sleep(0.0002)
    time.sleep(rng.uniform(0, 0.01))
    process.kill()
    process.join()
    if process.exitcode != -signal.SIGKILL:
        return None
    return Kill(background, run.is_saving(), run.unreadable(), run.newest(), run.done())


def kill_often(run: Run, kills: int, seed: int) -> list[Kill]:
    """Kill a run `kills` times, let it finish, and return the kills."""
    rng = random.Random(seed)
    done: list[Kill] = []
    for number in range(kills + 1):
        if number < kills:
            killed = kill(run, rng, background=number % 4 < 2, aimed=number % 2 == 0)
        else:
            run.start().join()
            killed = None
        if done:
            done[-1] = replace(done[-1], resumed=run.resumed())
        if killed is None:
            break
        done.append(killed)
        when = "during a save" if killed.during_save else "between saves"
        logger.info("%d of %d: %s, after step %d was saved", number + 1, kills, when, killed.saved)
    return done


def summary(done: list[Kill], same: dict[str, bool]) -> dict[str, Any]:
    """Return the numbers of the table."""
    repeated = [kill.done - kill.saved for kill in done]
    return {
        "kills": len(done),
        "during_save": sum(kill.during_save for kill in done),
        "beside_training": sum(kill.background for kill in done),
        "resumed": sum(kill.resumed is not None for kill in done),
        "resumed_from_last_save": sum(kill.resumed == kill.saved for kill in done),
        "unreadable": sum(kill.unreadable for kill in done),
        "steps_after_last_save_mean": round(fmean(repeated), 2),
        "steps_after_last_save_max": max(repeated),
        "same_as_uninterrupted": same,
    }


def claims(numbers: dict[str, Any], kills: int) -> dict[str, bool]:
    """Return whether each claim holds."""
    return {
        f"{kills} kills": numbers["kills"] == kills,
        "two fifths of them or more during a save": numbers["during_save"] >= 0.4 * kills,
        "every start goes on from the last save": numbers["resumed_from_last_save"] == kills,
        "no checkpoint is unreadable": numbers["unreadable"] == 0,
        "no step is recorded twice or lost, no weight differs": all(
            numbers["same_as_uninterrupted"].values()
        ),
    }


def table(numbers: dict[str, Any]) -> str:
    """Return the numbers as a Markdown page."""
    same = numbers["same_as_uninterrupted"]
    mean_repeated = numbers["steps_after_last_save_mean"]
    rows = {
        "SIGKILLs": numbers["kills"],
        "of these with a save unfinished": numbers["during_save"],
        "of these with checkpoints written beside the training": numbers["beside_training"],
        "starts that went on": numbers["resumed"],
        "of these from the last save": numbers["resumed_from_last_save"],
        "unreadable checkpoints": numbers["unreadable"],
        "steps after the last save that were made again, mean": mean_repeated,
        "the same, most": numbers["steps_after_last_save_max"],
        "files equal to those of a run that was left alone": f"{sum(same.values())} of {len(same)}",
    }
    lines = "\n".join(f"| {name} | {value} |" for name, value in rows.items())
    files = ", ".join(f"`{name}`" for name in same)
    return f"""# A run that is killed

Made by `python benchmarks/faults.py`: one process on the CPU saves after every step, gets SIGKILL
at a random time, every second time while a save is unfinished, and is started again with
`run.resume=auto`. The files compared in the end:
{files}.
A killed process leaves the system's caches as they are: this shows nothing about a power cut, for
which files and folders are synced before a checkpoint gets its name.

| | |
|---|---|
{lines}
"""


def main() -> int:
    """Measure, write the results and return 1 if a claim does not hold."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s", force=True)
    began = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        root, steps = Path(folder), arguments.kills * SAVES_AHEAD
        options = {"val_fraction": 0.25, "samples_per_shard": 16, "progress": False}
        write_rooms(root / "shards", 64, 32, 0, **options)
        whole, cut = (Run(root / name, root / "shards", steps) for name in ("whole", "cut"))
        whole.start().join()
        done = kill_often(cut, arguments.kills, arguments.seed)
        expected, result = whole.result(), cut.result()
    same = {name: result[name] == content for name, content in expected.items()}
    numbers = summary(done, same)
    results = {
        "machine": {"cores": os.cpu_count(), "python": platform.python_version()},
        "seconds": round(time.perf_counter() - began),
        **numbers,
        "claims": claims(numbers, arguments.kills),
        "each": [asdict(kill) for kill in done],
    }
    for path, text in ((RESULTS, json.dumps(results, indent=1) + "\n"), (TABLE, table(numbers))):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    sys.stdout.write(table(numbers))
    return 0 if all(results["claims"].values()) else 1


if __name__ == "__main__":
    sys.exit(main())
