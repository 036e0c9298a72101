"""Summarise the metrics of all tasks: relative change against a reference, and total error."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

from model.metrics import metric_for
from model.tasks.spec import TaskSpec
from trainer.errors import UserError

Metrics = Mapping[str, Mapping[str, float]]

CHANGE = (
    "The change of a task is that of its primary metric, relative to the reference, in percent: "
    "(reference - value) / reference where lower is better, (value - reference) / reference where "
    "higher is better. Positive is better."
)


@dataclass(frozen=True)
class RelativeChange:
    """The result of `relative_change`.

    Attributes:
        by_task: Change of each task in percent, positive where the task is better; see `CHANGE`.
        left_out: Tasks without a change.
    """

    by_task: dict[str, float]
    left_out: tuple[str, ...]

    @property
    def mean(self) -> float | None:
        """The mean over the tasks; None without any."""
        return fmean(self.by_task.values()) if self.by_task else None


def relative_change(
    tasks: Sequence[TaskSpec], metrics: Metrics, reference: Metrics
) -> RelativeChange:
    """Return the change of every task; one whose reference is not finite and positive has none.

    Args:
        tasks: Tasks to compare.
        metrics: Metrics to judge, by task and name.
        reference: Metrics to compare with.
    """
    by_task = {}
    for task in tasks:
        metric = metric_for(task)
        value, baseline = (
            values.get(task.name, {}).get(metric.primary, math.nan)
            for values in (metrics, reference)
        )
        if task.name in metrics and math.isfinite(baseline) and baseline > 0:
            change = 100 * (value - baseline) / baseline
            by_task[task.name] = change if metric.higher_is_better else -change
    return RelativeChange(by_task, tuple(t.name for t in tasks if t.name not in by_task))


@dataclass(frozen=True)
class Summary:
    """The result of `summarise`.

    Attributes:
        total_error: Sum of the error rates in percent of the tasks that have one, as in the
            paper: 100 * sum(1 - accuracy); None without such tasks. It says nothing of others.
        primary: Mean primary metric by task kind, for kinds whose tasks have the same primary
            metric and unit.
        normalized_gain: Mean of `gains`; None without gains.
        gains: Change against the reference by task, see `CHANGE`.
    """

    total_error: float | None
    primary: dict[str, float]
    normalized_gain: float | None
    gains: dict[str, float]


def summarise(
    tasks: Sequence[TaskSpec], metrics: Metrics, reference: Metrics | None = None
) -> Summary:
    """Summarise the metrics of a model, ignoring tasks without labels, which have no metrics.

    Args:
        tasks: Tasks of the model.
        metrics: Metrics of the model, by task and name.
        reference: Metrics of the model to compare with, of at least these tasks.

    Raises:
        UserError: The reference lacks a primary metric, or has one that is not finite and positive.
    """
    errors: list[float] = []
    by_kind: dict[str, dict[tuple[str, str], list[float]]] = {}
    for task in tasks:
        if task.name not in metrics:
            continue
        metric = metric_for(task)
        value = metrics[task.name][metric.primary]
        if metric.primary == "error":
            errors.append(value)
        by_metric = by_kind.setdefault(task.kind, {})
        by_metric.setdefault((metric.primary, task.unit), []).append(value)
        if reference is not None:
            _reference_value(task, reference)
    change = relative_change(tasks, metrics, reference or {})
    return Summary(
        total_error=100 * sum(errors) if errors else None,
        primary={
            kind: fmean(next(iter(values.values())))
            for kind, values in by_kind.items()
            if len(values) == 1
        },
        normalized_gain=change.mean,
        gains=change.by_task,
    )


def check_reference(tasks: Sequence[TaskSpec], reference: Metrics) -> None:
    """Check a reference before the evaluation.

    Accept a reference that lacks a task: without labels the task needs no reference.

    Raises:
        UserError: See `summarise`.
    """
    for task in tasks:
        if task.name in reference:
            _reference_value(task, reference)


def _reference_value(task: TaskSpec, reference: Metrics) -> float:
    primary = metric_for(task).primary
    if task.name not in reference:
        names = ", ".join(sorted(reference)) or "none"
        raise UserError(f"reference: task {task.name!r} is missing; found: {names}")
    values = reference[task.name]
    if primary not in values:
        names = ", ".join(sorted(values)) or "none"
        raise UserError(
            f"reference: task {task.name!r} lacks the metric {primary!r} that it is compared by; "
            f"found: {names}"
        )
    value = values[primary]
    if not (math.isfinite(value) and value > 0):
        raise UserError(
            f"reference: {primary!r} of task {task.name!r} is {value}, must be a finite number "
            "above 0, because the gain is relative to it"
        )
    return value
