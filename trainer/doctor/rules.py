"""How the labels of a task are to be read, in the terms of the data pipelines."""

from __future__ import annotations

from data_pipelines.doctor.statistics import LabelRule
from model.tasks.spec import TaskSpec


def rule_of(task: TaskSpec) -> LabelRule:
    """The rule of a task; classes without names are called by their ids."""
    classes = task.classes
    if "regression" not in task.kind and not classes:
        classes = tuple(str(number) for number in range(max(2, task.channels)))
    return LabelRule(
        task.name,
        task.kind,
        classes=classes,
        scale=task.scale,
        valid_below=task.valid_below,
        ignore_index=task.ignore_index,
    )
