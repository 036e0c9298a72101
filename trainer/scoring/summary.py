"""Numbers that sum up all tasks: total error, and gain over a reference."""

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
    """The result of `summarise`; a number that does not exist is None.

    Attributes:
        total_error: Error rates of the tasks added up, in percent: 100 * sum(1 - accuracy).
        primary: Per kind of task the mean of the primary metric, where the tasks of the kind agree
            in metric and unit.
        normalized_gain: Mean of `gains`, in percent.
        gains: Per task how much better the primary metric is than the reference's, relative to it,
            in percent: (reference - value) / reference, or where higher is better its mirror
            image (value - reference) / reference.
    """

    total_error: float | None
    primary: dict[str, float]
    normalized_gain: float | None
    gains: dict[str, float]


def summarise(
    tasks: Sequence[TaskSpec], metrics: Metrics, reference: Metrics | None = None
) -> Summary:
    """Sum up the metrics of a model; a task that has none, for want of labels, does not count.

    Args:
        tasks: The tasks of the model.
        metrics: Task to metric to value.
        reference: The same of the model to compare with, of these tasks or more.

    Raises:
        UserError: The reference lacks a primary metric, or has one that nothing can be relative to.
    """
    gains: dict[str, float] = {}
    errors: list[float] = []
    of_kind: dict[str, dict[tuple[str, str], list[float]]] = {}
    for task in tasks:
        if task.name not in metrics:
            continue
        metric = metric_for(task)
        value = metrics[task.name][metric.primary]
        if metric.primary == "error":
            errors.append(value)
        same_unit = of_kind.setdefault(task.kind, {})
        same_unit.setdefault((metric.primary, task.unit), []).append(value)
        if reference is not None:
            base = _reference_value(task, reference)
            change = (value - base) / base
            gains[task.name] = 100 * (change if metric.higher_is_better else -change)
    return Summary(
        total_error=100 * sum(errors) if errors else None,
        primary={
            kind: fmean(next(iter(values.values())))
            for kind, values in of_kind.items()
            if len(values) == 1
        },
        normalized_gain=fmean(gains.values()) if gains else None,
        gains=gains,
    )


def check_reference(tasks: Sequence[TaskSpec], reference: Metrics) -> None:
    """Find, before the tasks are evaluated, what `summarise` would not accept of the reference.

    A task that is missing may turn out to have no labels, so it does not count here.

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
