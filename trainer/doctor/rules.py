"""Describe the allowed labels of a task to the checks of the data pipelines."""

from __future__ import annotations

from data_pipelines.doctor.statistics import LabelRule
from model.kinds.kind import get_kind
from model.tasks.spec import TaskSpec


def rule_of(task: TaskSpec) -> LabelRule:
    """Return the rule of a task's labels; the ids of classes without names are their names."""
    return LabelRule(task.name, **get_kind(task.kind).label_rule(task))
