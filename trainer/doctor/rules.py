"""How the labels of a task are checked, as the data pipelines take it."""

from __future__ import annotations

from data_pipelines.doctor.statistics import LabelRule
from model.kinds.kind import get_kind
from model.tasks.spec import TaskSpec


def rule_of(task: TaskSpec) -> LabelRule:
    """Return the rule of a task; classes without names are called by their ids."""
    return LabelRule(task.name, **get_kind(task.kind).label_rule(task))
