"""Metrics as sums: states may be added over batches and processes, and are divided once.

`metric_for` gives evaluation, scoring and comparison the metrics of a task.
"""

from __future__ import annotations

from dmtg.plugins import METRICS
from model.kinds.kind import get_kind
from model.metrics.base import Metric
from model.tasks.spec import TaskSpec

__all__ = ["Metric", "metric_for"]


def metric_for(spec: TaskSpec) -> Metric:
    """Return the metrics of a task: those that it names, else those that its kind chooses."""
    return METRICS[get_kind(spec.kind).metric_name(spec)](spec)
