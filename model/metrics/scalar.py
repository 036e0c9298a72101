"""Metrics of the tasks with one label per image.

Legend: B batch, C classes.
"""

from __future__ import annotations

import torch
from torch import Tensor

from dmtg.plugins import register_metric
from model.losses.loss import class_loss
from model.metrics.base import Metric, ValueMetric, natural_errors, within
from model.tasks.decode import class_ids


@register_metric("binary")
class BinaryMetric(Metric):
    """Error rate and F1 of the positive class (zero without true and predicted positives)."""

    kinds = ("binary",)
    size = 4

    def sums(self, prediction: Tensor, target: Tensor, mask: Tensor) -> Tensor:
        predicted = class_loss(self.spec.loss).positive(prediction)
        true = target == 1
        cells = (predicted & true, predicted & ~true, ~predicted & true, ~predicted & ~true)
        return torch.stack([(cell & mask).sum() for cell in cells])

    def ratios(self, sums: list[float]) -> dict[str, float]:
        hits, false_alarms, misses, _ = sums
        wrong = false_alarms + misses
        doubled = 2 * hits
        return {
            "error": wrong / sum(sums),
            "f1": doubled / (doubled + wrong) if doubled + wrong else 0.0,
        }


@register_metric("balanced_binary")
class BalancedBinaryMetric(BinaryMetric):
    """Balanced error rate: the mean of those of positives and negatives; error rate and F1.

    Where positives are rare the best constant has a small error rate, but a balanced one of 0.5.
    """

    primary = "balanced_error"

    def ratios(self, sums: list[float]) -> dict[str, float]:
        hits, false_alarms, misses, rejections = sums
        of_classes = ((misses, hits), (false_alarms, rejections))
        rates = [wrong / (wrong + right) for wrong, right in of_classes if wrong + right]
        return {"balanced_error": sum(rates) / len(rates), **super().ratios(sums)}


@register_metric("multiclass")
class MulticlassMetric(Metric):
    """Error rate."""

    kinds = ("multiclass",)
    size = 2

    def sums(self, prediction: Tensor, target: Tensor, mask: Tensor) -> Tensor:
        wrong = (class_ids(self.spec, prediction) != target) & mask
        return torch.stack([wrong.sum(), mask.sum()])

    def ratios(self, sums: list[float]) -> dict[str, float]:
        return {"error": sums[0] / sums[1]}


@register_metric("regression")
class RegressionMetric(ValueMetric):
    """Mean absolute and root mean square error in the natural unit."""

    kinds = ("regression",)
    size = 3
    primary = "mae"

    def sums(self, prediction: Tensor, target: Tensor, mask: Tensor) -> Tensor:
        errors = natural_errors(self.spec, prediction, target[:, None])[:, 0]
        errors = within(mask, errors, 0.0)
        return torch.stack([errors.sum(), errors.square().sum(), mask.sum()])

    def ratios(self, sums: list[float]) -> dict[str, float]:
        return {"mae": sums[0] / sums[2], "rmse": (sums[1] / sums[2]) ** 0.5}
