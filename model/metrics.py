"""Metrics as sums: states may be added over batches and processes, and are divided once.

A state is a float64 vector. Updates take what the network gives: a prediction [B,C] or [B,C,H,W]
and from `MultiTaskNetwork.by_task` a target [B] or [B,C,H,W] (ids [B,H,W]) with its mask.

Legend: B batch, C channels or classes, H, W.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
import torch.nn.functional as F
from torch import Tensor

from model.decode import class_ids, natural_values, per_channel
from model.tasks import TaskSpec


class Metric(ABC):
    """The metrics of one task.

    Attributes:
        primary: The metric that stands for the task.
        higher_is_better: Of the primary metric.
    """

    primary = "error"
    higher_is_better = False

    def __init__(self, spec: TaskSpec) -> None:
        self.spec = spec

    @property
    @abstractmethod
    def size(self) -> int:
        """Length of a state."""

    @abstractmethod
    def _sums(self, prediction: Tensor, target: Tensor, mask: Tensor) -> Tensor:
        """Return what a batch adds to the state."""

    @abstractmethod
    def _ratios(self, sums: list[float]) -> dict[str, float]:
        """Return the metrics of a state that has seen labels."""

    def zeros(self, device: torch.device | str = "cpu") -> Tensor:
        """Return the state before any sample."""
        return torch.zeros(self.size, dtype=torch.float64, device=device)

    def update(self, state: Tensor, prediction: Tensor, target: Tensor, mask: Tensor) -> Tensor:
        """Return the state with one more batch; values outside the mask are not looked at."""
        return state + self._sums(prediction, target, mask).to(torch.float64)

    def compute(self, state: Tensor) -> dict[str, float]:
        """Return the metrics by name; empty where the state has not seen a single label."""
        sums = state.tolist()
        return self._ratios(sums) if any(sums) else {}


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
        errors = _natural_errors(self.spec, prediction, target[:, None])[:, 0][mask]
        return torch.stack([errors.sum(), errors.square().sum(), mask.sum()])

    def _ratios(self, sums: list[float]) -> dict[str, float]:
        return {"mae": sums[0] / sums[2], "rmse": (sums[1] / sums[2]) ** 0.5}


class DenseRegressionMetric(Metric):
    """Mean absolute error in the natural unit over the valid pixels and the channels."""

    size = 2
    primary = "mae"

    def _sums(self, prediction: Tensor, target: Tensor, mask: Tensor) -> Tensor:
        errors = _natural_errors(self.spec, prediction, target).mean(dim=1)[mask]
        return torch.stack([errors.sum(), mask.sum()])

    def _ratios(self, sums: list[float]) -> dict[str, float]:
        return {"mae": sums[0] / sums[1]}


class NormalMetric(DenseRegressionMetric):
    """Mean angle in degrees between predicted and true surface normals, and their `mae`."""

    size = 3
    primary = "angle"

    def _sums(self, prediction: Tensor, target: Tensor, mask: Tensor) -> Tensor:
        predicted, true = (natural_values(self.spec, v.double()) for v in (prediction, target))
        cosines = F.cosine_similarity(predicted, true, dim=1)[mask]
        angles = torch.rad2deg(torch.acos(cosines.clamp(-1, 1)))
        return torch.cat([super()._sums(prediction, target, mask), angles.sum()[None]])

    def _ratios(self, sums: list[float]) -> dict[str, float]:
        return {"angle": sums[2] / sums[1], **super()._ratios(sums)}


class DenseClassificationMetric(Metric):
    """Mean intersection over union of the classes that occur in the labels, and pixel error."""

    primary = "miou"
    higher_is_better = True

    @property
    def size(self) -> int:
        """Length of a state: the flattened confusion matrix, true class first."""
        return self.spec.outputs**2

    def _sums(self, prediction: Tensor, target: Tensor, mask: Tensor) -> Tensor:
        called = class_ids(self.spec, prediction)[mask]
        return torch.bincount(target[mask] * self.spec.outputs + called, minlength=self.size)

    def _ratios(self, sums: list[float]) -> dict[str, float]:
        confusion = torch.tensor(sums, dtype=torch.float64).view(self.spec.outputs, -1)
        hits, true, called = confusion.diag(), confusion.sum(dim=1), confusion.sum(dim=0)
        present = true > 0
        overlap = hits[present] / (true + called - hits)[present]
        return {
            "miou": float(overlap.mean()),
            "pixel_error": float(1 - hits.sum() / confusion.sum()),
        }


def _natural_errors(spec: TaskSpec, prediction: Tensor, target: Tensor) -> Tensor:
    """Return absolute errors in the natural unit, float64 in the shape of the prediction."""
    errors = (prediction.double() - target.double()).abs()
    return errors * per_channel(spec.scale, errors) * abs(spec.unit_scale)


def metric_for(spec: TaskSpec) -> Metric:
    """Return the metrics of a task."""
    if spec.kind == "dense_regression" and spec.display == "normal":
        return NormalMetric(spec)
    classes: dict[str, type[Metric]] = {
        "binary": BinaryMetric,
        "multiclass": MulticlassMetric,
        "regression": RegressionMetric,
        "dense_regression": DenseRegressionMetric,
        "dense_classification": DenseClassificationMetric,
    }
    return classes[spec.kind](spec)
