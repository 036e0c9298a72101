"""Measure what finding the groups costs, against the same groups given from the start.

python benchmarks/price.py [--seeds 5]

For each problem and seed two runs of equal steps: the default recipe, and the recipe `fixed` with
the groups that the first has found. Both start from the same weights. The time is that from the
first to the last step. Writes benchmarks/results/price.json; the exit code is 1 if a limit does
not hold. It takes about half an hour on a core that must be free.
"""

from __future__ import annotations

import argparse
import logging
import os
import platform
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import fmean
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch
from tqdm import tqdm

from data_pipelines.reading.collate import Batch
from data_pipelines.synthetic.digits import write_digits
from data_pipelines.synthetic.rooms import write_rooms
from trainer.config.loading import load_config
from trainer.engines.accelerator import make_accelerator
from trainer.evaluation import Metrics
from trainer.json_file import write_json
from trainer.loop import train
from trainer.results.groups import groups_of
from trainer.scoring.summary import relative_change
from trainer.session import Session, start_session

ROOT = Path(__file__).resolve().parent.parent
OUT = ROOT / "benchmarks" / "results" / "price.json"
MAX_TIME, MAX_ERROR = 1.10, 1.00  # relative to the given groups, means over the seeds
PROBLEMS: dict[str, tuple[str, Callable[[Path], Any], int]] = {
    "rooms": ("demo.yaml", lambda out: write_rooms(out, samples=2400, image_size=64, seed=0), 300),
    "digits": ("digits.yaml", write_digits, 600),
}


def run(config: str, overrides: list[str]) -> tuple[float, Session, Metrics]:
    """Train and return the seconds of the steps, the session and its metrics."""
    starts: list[float] = []

    def observe(_session: Session, _batches: list[Batch]) -> None:
        starts.append(time.perf_counter())

    settings = load_config(ROOT / "experiments" / config, overrides)
    with start_session(settings, make_accelerator(settings)) as session:
        metrics = train(session, observe)
    return starts[-1] - starts[0], session, metrics


def measure(config: str, shards: Path, steps: int, seed: int, out: Path) -> dict[str, float]:
    """Return the ratios of time and error of one seed, and the change in percent."""
    common = [
        *(f"run.steps={steps}", f"run.checkpoint_every={steps}", f"eval.every={steps}"),
        *(f"run.seed={seed}", f"data.shards={shards}", "data.workers=0", "log.trackers=[]"),
        *("log.progress=false", "model.paired_init=true"),
    ]
    seconds, session, metrics = run(config, [*common, f"run.out={out / 'found'}"])
    names = [task.name for task in session.tasks]
    groups = out / "groups.json"
    write_json(groups, {"groups": groups_of(steps, names, session.learner).groups})
    given = [f"run.out={out / 'given'}", "grouping.recipe=fixed", f"grouping.groups={groups}"]
    given_seconds, _, given_metrics = run(config, [*common, *given])
    change = relative_change(session.tasks, metrics, given_metrics).mean
    assert change is not None, "the tasks have metrics"
    return {
        "seed": seed,
        "time": seconds / given_seconds,
        "error": 1 - change / 100,
        "seconds": seconds,
        "given_seconds": given_seconds,
    }


def main() -> int:
    """Measure all problems, print and save the ratios."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--seeds", type=int, default=5)
    seeds = parser.parse_args().seeds
    logging.disable(logging.WARNING)
    results = {}
    with tempfile.TemporaryDirectory() as folder:
        for name, (config, make, steps) in PROBLEMS.items():
            shards = Path(folder) / name / "shards"
            make(shards)
            rows = [
                measure(config, shards, steps, seed, Path(folder) / name / str(seed))
                for seed in tqdm(range(seeds), desc=name, unit="seed")
            ]
            mean = {key: fmean(row[key] for row in rows) for key in ("time", "error")}
            results[name] = {"steps": steps, "mean": mean, "seeds": rows}
            print(f"{name}: time {mean['time']:.3f}, error {mean['error']:.3f}", flush=True)
    write_json(
        OUT,
        {
            "command": f"python benchmarks/price.py --seeds {seeds}",
            "machine": f"{platform.machine()}, {os.cpu_count()} cores, torch {torch.__version__}, "
            f"{torch.get_num_threads()} threads",
            "limits": {"time": MAX_TIME, "error": MAX_ERROR},
            "problems": results,
        },
        indent=1,
    )
    means = [result["mean"] for result in results.values()]
    return int(any(m["time"] > MAX_TIME or m["error"] > MAX_ERROR for m in means))


if __name__ == "__main__":
    sys.exit(main())
