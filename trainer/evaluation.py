"""Compute exact metrics of a split from sums over all samples and ranks.

Legend: B batch, O outputs.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import torch
from accelerate.utils import broadcast_object_list
from torch import Tensor

from data_pipelines.reading.collate import Batch
from data_pipelines.reading.transfer import on_device
from model.heads.layout import Head
from model.kinds.kind import get_kind
from model.metrics import metric_for
from model.network import MultiTaskNetwork
from model.tasks.constant import expand_constant
from model.tasks.spec import TaskSpec
from trainer.engines.engine import Engine

Metrics = dict[str, dict[str, float]]
Constants = dict[str, Tensor]  # by task, the outputs [O] of a head that predicts the constant
TaskTargets = Mapping[str, tuple[Tensor, Tensor]]


class MetricSums:
    """The metric states of all tasks, which can be summed over ranks as one vector.

    Args:
        tasks: Tasks to evaluate.
        device: Device of the states.
    """

    def __init__(self, tasks: Sequence[TaskSpec], device: torch.device | str = "cpu") -> None:
        self._metrics = {task.name: metric_for(task) for task in tasks}
        self._states = {name: m.zeros(device) for name, m in self._metrics.items()}

    def update(self, predictions: Mapping[str, Tensor], targets: TaskTargets) -> None:
        """Add a batch: predictions of the heads, and targets from `TaskLabels.by_task`."""
        for name, metric in self._metrics.items():
            self._states[name] = metric.update(
                self._states[name], predictions[name], *targets[name]
            )

    @property
    def vector(self) -> Tensor:
        """The concatenated states, float64."""
        return torch.cat(list(self._states.values()))

    def compute(self, vector: Tensor) -> Metrics:
        """Return the metrics of a vector of sums by task, without tasks that have no labels."""
        parts = vector.split([len(state) for state in self._states.values()])
        values = {
            name: metric.compute(part)
            for (name, metric), part in zip(self._metrics.items(), parts, strict=True)
        }
        return {name: metrics for name, metrics in values.items() if metrics}


def evaluate(engine: Engine, batches: Iterable[Batch], heads: list[Head]) -> Metrics:
    """Evaluate one head per task and return the same metrics on every rank.

    This is a collective operation: every rank must call it.

    Args:
        engine: Engine of the network, which is in training mode afterwards.
        batches: This rank's batches of the split; fillers have no labels and do not count.
        heads: One (task, branch) per task.
    """
    return evaluate_beside(engine, batches, heads, None)[0]


@torch.no_grad()
def evaluate_beside(
    engine: Engine, batches: Iterable[Batch], heads: list[Head], constants: Constants | None
) -> tuple[Metrics, Metrics]:
    """Return the metrics of `evaluate`, and those of constant predictions on the same batches.

    Args:
        engine: As in `evaluate`.
        batches: As in `evaluate`.
        heads: As in `evaluate`.
        constants: Of `share_constants`; None for none, whose metrics are empty.
    """
    module, device = engine.module, engine.accelerator.device
    selection, sums = module.select(heads), MetricSums(module.tasks, device)
    constant_sums = MetricSums(module.tasks if constants else (), device)
    engine.network.eval()
    for batch in on_device(batches, device):
        predictions = engine.network(batch.images, selection)["predictions"]
        targets = task_targets(module, batch)
        sums.update(predictions, targets)
        if constants:
            constant_sums.update(
                _constant_predictions(module, constants, len(batch.images)), targets
            )
    engine.network.train()
    metrics = sums.compute(engine.sum_over_ranks(sums.vector))
    if not constants:
        return metrics, {}
    return metrics, constant_sums.compute(engine.sum_over_ranks(constant_sums.vector))


@torch.no_grad()
def evaluate_losses(engine: Engine, batches: Iterable[Batch], heads: list[Head]) -> Tensor:
    """Return the mean losses [N] of one head per task, NaN for tasks without labels.

    They are the same on every rank. This is a collective operation: every rank must call it.

    Args:
        engine: As in `evaluate`.
        batches: As in `evaluate`.
        heads: As in `evaluate`.
    """
    module, device = engine.module, engine.accelerator.device
    selection = module.select(heads)
    sums = torch.zeros(2, len(module.tasks), dtype=torch.float64, device=device)
    engine.network.eval()
    for batch in on_device(batches, device):
        targets = module.labels.targets(batch.scalars, batch.dense, batch.valid_rows)
        losses = engine.network(batch.images, selection, targets)["losses"].sum(dim=1)
        sums += torch.stack([losses, module.labels.label_counts(targets)])
    engine.network.train()
    losses, counts = engine.sum_over_ranks(sums)
    return torch.where(counts > 0, losses / counts.clamp_min(1e-12), torch.nan)


def share_constants(engine: Engine, training: Iterable[Batch]) -> Constants:
    """Return the best constants of all tasks, the same on every rank; every rank must call it.

    Args:
        engine: Engine of the network with the tasks.
        training: Batches whose labels determine the constants; only the main process reads them.
    """
    accelerator = engine.accelerator
    shared: list[Constants | None] = [None]
    if accelerator.is_main_process:
        shared = [learn_constants(engine.module, on_device(training, accelerator.device))]
    constants = broadcast_object_list(shared)[0]
    assert constants is not None, "the main process has sent them"
    return {name: value.to(accelerator.device) for name, value in constants.items()}


def learn_constants(network: MultiTaskNetwork, training: Iterable[Batch]) -> Constants:
    """Return the constant prediction with the least loss on these labels, for every task."""
    predictors = {t.name: get_kind(t.kind).constant_predictor(t) for t in network.tasks}
    for batch in training:
        for name, target in task_targets(network, batch).items():
            predictors[name].update(*target)
    return {name: predictor.constant() for name, predictor in predictors.items()}


def _constant_predictions(
    network: MultiTaskNetwork, constants: Constants, batch_size: int
) -> dict[str, Tensor]:
    """Return the constants [O] as predictions [B,O], or [B,O,H,W] of dense tasks."""
    return {
        task.name: expand_constant(
            constants[task.name], batch_size, network.image_size if task.dense else None
        )
        for task in network.tasks
    }


@torch.no_grad()
def evaluate_pruned(network: MultiTaskNetwork, batches: Iterable[Batch]) -> Metrics:
    """Evaluate a network with one head per task in this process."""
    selection, sums = network.select(network.heads), MetricSums(network.tasks)
    for batch in batches:
        predictions = network(batch.images, selection)["predictions"]
        sums.update(predictions, task_targets(network, batch))
    return sums.compute(sums.vector)


def evaluate_constants(
    network: MultiTaskNetwork, training: Iterable[Batch], batches: Iterable[Batch]
) -> Metrics:
    """Return the metrics of the best constant prediction of every task.

    Args:
        network: Network with the tasks.
        training: Batches whose labels determine the constants.
        batches: Batches to evaluate.
    """
    constants = learn_constants(network, training)
    sums = MetricSums(network.tasks)
    for batch in batches:
        predictions = _constant_predictions(network, constants, len(batch.images))
        sums.update(predictions, task_targets(network, batch))
    return sums.compute(sums.vector)


def task_targets(network: MultiTaskNetwork, batch: Batch) -> TaskTargets:
    """Return the scaled targets and masks of a batch, by task."""
    labels = network.labels
    return labels.by_task(labels.targets(batch.scalars, batch.dense, batch.valid_rows))
