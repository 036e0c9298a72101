"""Metrics of the tasks with one label per image.

Legend: B batch, C classes.
"""

from __future__ import annotations

import torch
from torch import Tensor

from model.metrics.base import Metric, natural_errors
from model.tasks.decode import class_ids


class BinaryMetric(Metric):
    """Error rate and F1 of the positive class (zero where nothing is or is called positive)."""

    size = 4

    def _sums(self, prediction: Tensor, target: Tensor, mask: Tensor) -> Tensor:
        if self.spec.loss == "bce":
            called = prediction[:, 0] > 0
        else:
            called = prediction[:, 1] > prediction[:, 0]
        true = target == 1
        cells = (called & true, called & ~true, ~called & true, ~called & ~true)
        return torch.stack([(cell & mask).sum() for cell in cells])

    def _ratios(self, sums: list[float]) -> dict[str, float]:
        hits, false_alarms, misses, _ = sums
        wrong = false_alarms + misses
        doubled = 2 * hits
        return {
            "error": wrong / sum(sums),
            "f1": doubled / (doubled + wrong) if doubled + wrong else 0.0,
        }


class MulticlassMetric(Metric):
    """Error rate."""

    size = 2

    def _sums(self, prediction: Tensor, target: Tensor, mask: Tensor) -> Tensor:
        wrong = (class_ids(self.spec, prediction) != target) & mask
        return torch.stack([wrong.sum(), mask.sum()])

    def _ratios(self, sums: list[float]) -> dict[str, float]:
        return {"error": sums[0] / sums[1]}


class RegressionMetric(Metric):
    """Mean absolute and root mean square error in the natural unit."""

    size = 3
    primary = "mae"

    def _sums(self, prediction: Tensor, target: Tensor, mask: Tensor) -> Tensor:
        errors = natural_errors(self.spec, prediction, target[:, None])[:, 0][mask]
        return torch.stack([errors.sum(), errors.square().sum(), mask.sum()])

    def _ratios(self, sums: list[float]) -> dict[str, float]:
        return {"mae": sums[0] / sums[2], "rmse": (sums[1] / sums[2]) ** 0.5}
