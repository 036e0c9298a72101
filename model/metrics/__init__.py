"""Metrics as sums: states may be added over batches and processes, and are divided once.

A state is a float64 vector. Updates take what the network gives: a prediction [B,C] or [B,C,H,W]
and from `TaskLabels.by_task` a target [B] or [B,C,H,W] (ids [B,H,W]) with its mask.

Legend: B batch, C channels or classes, H, W.
"""

from __future__ import annotations

from model.metrics.base import Metric
from model.metrics.dense import (
    DenseClassificationMetric,
    DenseRegressionMetric,
    DepthMetric,
    NormalMetric,
    ResponseMetric,
)
from model.metrics.scalar import BinaryMetric, MulticlassMetric, RegressionMetric
from model.tasks.spec import TaskSpec

__all__ = ["Metric", "metric_for"]


def metric_for(spec: TaskSpec) -> Metric:
    """Return the metrics of a task."""
    classes: dict[str, type[Metric]] = {
        "binary": BinaryMetric,
        "multiclass": MulticlassMetric,
        "regression": RegressionMetric,
        "dense_regression": DenseRegressionMetric,
        "dense_classification": DenseClassificationMetric,
    }
    if spec.kind == "dense_regression":
        if spec.positive_above is not None:
            return ResponseMetric(spec)
        shown: dict[str, type[Metric]] = {"depth": DepthMetric, "normal": NormalMetric}
        return shown.get(spec.display, DenseRegressionMetric)(spec)
    return classes[spec.kind](spec)
