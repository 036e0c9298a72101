"""Summarise the metrics of all tasks: total error, and gain over a reference."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

from model.metrics import metric_for
from model.tasks.spec import TaskSpec
from trainer.errors import UserError

Metrics = Mapping[str, Mapping[str, float]]


@dataclass(frozen=True)
class Summary:
    """The result of `summarise`.

    Attributes:
        total_error: Sum of the tasks' error rates in percent, 100 * sum(1 - accuracy); None
            without such tasks.
        primary: Mean primary metric by task kind, for kinds whose tasks have the same primary
            metric and unit.
        normalized_gain: Mean of `gains`; None without gains.
        gains: Relative improvement of the primary metric over the reference by task, in percent:
            (reference - value) / reference, or (value - reference) / reference if higher is
            better.
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
    gains: dict[str, float] = {}
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
            baseline = _reference_value(task, reference)
            change = (value - baseline) / baseline
            gains[task.name] = 100 * (change if metric.higher_is_better else -change)
    return Summary(
        total_error=100 * sum(errors) if errors else None,
        primary={
            kind: fmean(next(iter(values.values())))
            for kind, values in by_kind.items()
            if len(values) == 1
        },
        normalized_gain=fmean(gains.values()) if gains else None,
        gains=gains,
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
