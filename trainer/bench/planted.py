"""Measure a recipe on planted problems, whose true groups are known."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from accelerate import Accelerator
from sklearn.metrics import adjusted_rand_score
from tqdm import tqdm

from data_pipelines.reading.collate import Batch
from data_pipelines.synthetic.planted import NUM_FEATURES, NUM_HIDDEN, NUM_INPUTS, PlantedProblem
from dmtg.plugins import RECIPES
from model.tasks.spec import TaskSpec
from trainer.config.config import Config
from trainer.config.loading import apply_overrides, parse_config
from trainer.engines.accelerator import make_accelerator
from trainer.errors import UserError
from trainer.json_file import write_json
from trainer.recipes.groups import groups_of_labels
from trainer.run import train_run

_EVAL_BATCHES, _EVAL_BATCH = 8, 1024
_FIRST_EVAL_BATCH = 10**9  # larger than the number of any training batch


class PlantedData:
    """`trainer.run_data.RunData` of a planted problem."""

    def __init__(self, problem: PlantedProblem, config: Config) -> None:
        self.tasks = tuple(TaskSpec(name, "binary") for name in problem.tasks)
        self.train_samples: int | None = None
        self.eval_samples = _EVAL_BATCHES * _EVAL_BATCH
        self.digest = f"planted-{config.run.seed}"
        self.dataset = "planted"
        self._problem = problem
        self._micro_batch = config.data.global_batch // config.optim.gradient_accumulation_steps
        self._accumulation = config.optim.gradient_accumulation_steps

    def steps_per_epoch(self) -> int:
        """Raise an error: a planted problem has no epochs.

        Raises:
            UserError: Always.
        """
        raise UserError("run.epochs: a planted problem has no end, give run.steps instead")

    def train_batches(
        self, start_step: int, end_step: int, *, rank: int, world_size: int
    ) -> Iterator[Batch]:
        """Yield the micro-batches of a rank; no two ranks have the same samples."""
        size = self._micro_batch // world_size
        for number in range(start_step * self._accumulation, end_step * self._accumulation):
            yield self._problem.batch(number * world_size + rank, size)

    def eval_batches(self, *, rank: int, world_size: int) -> Iterable[Batch]:
        """Yield the same evaluation batches in every evaluation."""
        for number in range(rank, _EVAL_BATCHES, world_size):
            yield self._problem.batch(_FIRST_EVAL_BATCH + number, _EVAL_BATCH)


@dataclass(frozen=True)
class PlantedResult:
    """The result of a recipe on one problem.

    Attributes:
        seed: Seed of the problem and the runs.
        error: Mean test error of the tasks.
        true_error: Mean test error of the true grouping, trained with the same settings.
        ratio: `error` divided by `true_error`.
        ari: Adjusted Rand index of the recipe's groups and the true groups.
        branches: Number of branches with tasks after training.
        seconds: Wall time of the recipe's run.
    """

    seed: int
    error: float
    true_error: float
    ratio: float
    ari: float
    branches: int
    seconds: float


def measure_grouping(
    num_tasks: int,
    num_groups: int,
    num_branches: int,
    seeds: Sequence[int],
    recipe: str,
    *,
    steps: int = 2000,
    batch: int = 256,
    overrides: Iterable[str] = (),
    progress: bool = True,
) -> list[PlantedResult]:
    """Train the recipe and the true grouping on one problem for each seed.

    Args:
        num_tasks: Number of tasks.
        num_groups: Number of true groups.
        num_branches: Number of branches of the recipe's network.
        seeds: Seeds of the problems and the runs.
        recipe: Name of the recipe.
        steps: Number of training steps.
        batch: Samples of a step.
        overrides: `section.key=value` for the recipe's runs.
        progress: Whether to show a progress bar.

    Raises:
        UserError: There are fewer tasks than groups, or the configuration is not allowed.
    """
    if num_tasks < num_groups:
        raise UserError(f"--groups is {num_groups}, must be at most --tasks, {num_tasks}")
    results = []
    with tempfile.TemporaryDirectory() as folder:
        for seed in tqdm(seeds, desc=recipe, unit="problem", disable=not progress):
            problem = PlantedProblem(num_tasks, num_groups, seed)
            out = Path(folder) / str(seed)
            config = planted_config(
                out / "run", num_branches, seed, recipe, steps, batch, overrides
            )
            error, labels, seconds = _train(config, problem)
            true_labels = [int(group) for group in problem.groups]
            groups = write_groups(out / "true.json", problem)
            true_config = planted_config(
                out / "true",
                num_groups,
                seed,
                "fixed",
                steps,
                batch,
                [f"grouping.groups={groups}"],
            )
            true_error, _, _ = _train(true_config, problem)
            results.append(
                PlantedResult(
                    seed,
                    error,
                    true_error,
                    error / true_error,
                    float(adjusted_rand_score(true_labels, labels)),
                    len(set(labels)),
                    seconds,
                )
            )
    return results


def write_groups(path: Path, problem: PlantedProblem) -> Path:
    """Write the true groups of a problem in the format of `grouping.groups`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    groups = groups_of_labels([int(group) for group in problem.groups])
    write_json(path, {"groups": [[problem.tasks[task] for task in group] for group in groups]})
    return path


def planted_config(
    out: Path,
    num_branches: int,
    seed: int,
    recipe: str,
    steps: int,
    batch: int,
    overrides: Iterable[str] = (),
) -> Config:
    """Return the configuration of a run on a planted problem.

    The branches have the width of a group's features.
    """
    tree: dict[str, Any] = {
        "run": {"out": str(out), "steps": steps, "seed": seed, "checkpoint_every": steps},
        "data": {"shards": "planted", "image_size": [1, 1], "global_batch": batch, "workers": 0},
        "model": {
            "branches": num_branches,
            "encoder": {
                "name": "mlp",
                "options": {"widths": [NUM_INPUTS, NUM_HIDDEN, NUM_FEATURES]},
            },
        },
        "grouping": {"recipe": recipe},
        "pruning": {"threshold": min(0.05, 0.5 / num_branches)},
        "optim": {"name": "adam", "schedule": "constant"},
        "log": {"every": steps, "trackers": [], "progress": False},
    }
    if recipe in RECIPES and RECIPES[recipe].benchmark_pruning is not None:
        begin, end = RECIPES[recipe].benchmark_pruning
        tree["pruning"] |= {"begin": begin, "end": end}
    apply_overrides(tree, overrides)
    return parse_config(tree, "the planted problem")


def _train(config: Config, problem: PlantedProblem) -> tuple[float, list[int], float]:
    """Train and return the mean test error, the branch of every task, and the seconds."""
    start = time.perf_counter()
    accelerator: Accelerator = make_accelerator(config)
    session, metrics = train_run(config, accelerator, PlantedData(problem, config))
    labels = [branch for _, branch in sorted(session.learner.chosen_heads())]
    error = fmean(values["error"] for values in metrics.values())
    return error, labels, time.perf_counter() - start


def as_json(results: Sequence[PlantedResult]) -> dict[str, Any]:
    """Return the results, and the mean over the seeds of every number except the seed."""
    rows = [asdict(result) for result in results]
    mean = {name: fmean(row[name] for row in rows) for name in rows[0] if name != "seed"}
    return {"seeds": rows, "mean": mean}
