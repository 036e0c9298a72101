"""Score an exported model on shards and compare it with the best constant of every task."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from torch.utils.data import DataLoader

from data_pipelines.reading.collate import Batch
from data_pipelines.reading.loader import eval_loader
from data_pipelines.shards.manifest import Manifest, check_shards
from data_pipelines.shards.sources import Location, open_folder
from model.bundle import PrunedModel, load_pruned
from model.metrics import metric_for
from model.tasks.spec import TaskSpec
from trainer.evaluation import Metrics, evaluate_constants, evaluate_pruned
from trainer.run_data import LABELLED_SAMPLES
from trainer.scoring.summary import (
    RelativeChange,
    Summary,
    check_reference,
    relative_change,
    summarise,
)
from trainer.tasks import label_requests


@dataclass(frozen=True)
class Score:
    """The primary metric of one task.

    Attributes:
        task: Name of the task.
        group: Number of the task's group.
        metric: Name of the primary metric.
        value: Metric of the model.
        constant: Metric of the best constant prediction.
        higher_is_better: Whether a higher value is better.
        gain: Gain over the reference in percent; None without a reference.
    """

    task: str
    group: int
    metric: str
    value: float
    constant: float
    higher_is_better: bool
    gain: float | None = None

    @property
    def beats_constant(self) -> bool:
        """Whether the model is strictly better than the best constant prediction.

        A value that is not finite is not better, and nothing is better than one.
        """
        if not (math.isfinite(self.value) and math.isfinite(self.constant)):
            return False
        if self.higher_is_better:
            return self.value > self.constant
        return self.value < self.constant


@dataclass(frozen=True)
class Evaluation:
    """A score for each task, all metrics of the model, and their summaries.

    Attributes:
        scores: Of each task.
        metrics: All metrics of the model.
        summary: Against the reference, if there is one.
        against_constant: Against the best constant predictions.
    """

    scores: list[Score]
    metrics: Metrics
    summary: Summary
    against_constant: RelativeChange


def score_model(
    model_path: Path,
    shards: Location,
    *,
    reference: Metrics | None = None,
    split: str = "val",
    train_split: str = "train",
    batch: int = 64,
    workers: int = 0,
) -> Evaluation:
    """Evaluate an exported model on a split.

    Args:
        model_path: File of the exported model.
        shards: Folder of the shards, a path or a URL.
        reference: Metrics of the model to compare with, by task and name.
        split: Split to evaluate.
        train_split: Split from which the constants are computed, on evenly spaced samples.
        batch: Samples of a batch.
        workers: Worker processes that read the shards.

    Raises:
        BundleError: The model cannot be read.
        DataError: The shards cannot be read.
        UserError: The reference cannot be used.
    """
    model = load_pruned(model_path)
    if reference is not None:
        check_reference(model.tasks, reference)
    folder = open_folder(shards)
    manifest = Manifest.load(folder)
    for name in (split, train_split):
        check_shards(folder, manifest.split(name))

    def batches(name: str, limit: int | None = None) -> DataLoader[Batch]:
        return eval_loader(
            folder,
            manifest,
            label_requests(model.tasks),
            model.image_size,
            batch_size=batch,
            split=name,
            limit=limit,
            workers=workers,
        )

    metrics = evaluate_pruned(model.network, batches(split))
    training = batches(train_split, limit=LABELLED_SAMPLES)
    constants = evaluate_constants(model.network, training, batches(split))
    summary = summarise(model.tasks, metrics, reference)
    scores = _scores(model, metrics, constants, summary)
    against_constant = relative_change(model.tasks, metrics, constants)
    return Evaluation(scores, metrics, summary, against_constant)


def _scores(
    model: PrunedModel, metrics: Metrics, constants: Metrics, summary: Summary
) -> list[Score]:
    group_of = {name: number for number, names in enumerate(model.groups) for name in names}
    return make_scores(model.tasks, group_of, metrics, constants, summary.gains)


def make_scores(
    tasks: Sequence[TaskSpec],
    group_of: Mapping[str, int],
    metrics: Metrics,
    constants: Metrics,
    gains: Mapping[str, float] | None = None,
) -> list[Score]:
    """Return the scores of all tasks, by group and then by name.

    Args:
        tasks: The tasks.
        group_of: Number of each task's group.
        metrics: Of the model, by task and name; a task without labels has none.
        constants: Of the best constant predictions.
        gains: Over a reference, by task.
    """
    scores = []
    for task in tasks:
        metric = metric_for(task)
        values, constant = metrics.get(task.name, {}), constants.get(task.name, {})
        scores.append(
            Score(
                task.name,
                group_of[task.name],
                metric.primary,
                values.get(metric.primary, math.nan),
                constant.get(metric.primary, math.nan),
                metric.higher_is_better,
                (gains or {}).get(task.name),
            )
        )
    return sorted(scores, key=lambda score: (score.group, score.task))


def scores_json(scores: list[Score]) -> list[dict[str, object]]:
    """Return the scores as JSON values."""
    return [{**asdict(score), "beats_constant": score.beats_constant} for score in scores]
