"""Metrics of the tasks with a label for every pixel.

Legend: B batch, C channels or classes, H, W.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from model.metrics.base import Metric, natural_errors
from model.tasks.decode import class_ids, natural_values, per_channel


class DenseRegressionMetric(Metric):
    """Mean absolute error in the natural unit over the valid pixels and the channels."""

    size = 2
    primary = "mae"

    def _sums(self, prediction: Tensor, target: Tensor, mask: Tensor) -> Tensor:
        errors = natural_errors(self.spec, prediction, target).mean(dim=1)[mask]
        return torch.stack([errors.sum(), mask.sum()])

    def _ratios(self, sums: list[float]) -> dict[str, float]:
        return {"mae": sums[0] / sums[1]}


class DepthMetric(DenseRegressionMetric):
    """`mae`, and `aligned_rmse`: what is left when each image's scale and shift are given away.

    To every predicted map the least squares of its own valid pixels fit one factor and one summand
    (per channel; the factor may be negative). The root mean square is over all valid pixels of the
    split, in the natural unit, not a mean of one number per image: an image counts by its pixels.
    A constant prediction keeps its summand alone, and an image with a single pixel adds no error.
    """

    size = 3

    def _sums(self, prediction: Tensor, target: Tensor, mask: Tensor) -> Tensor:
        residuals = _aligned_residuals(prediction.double(), target.double(), mask[:, None])
        unit = per_channel(self.spec.scale, residuals) * self.spec.unit_scale
        squares = (residuals * unit).square().mean(dim=1).sum()
        return torch.cat([super()._sums(prediction, target, mask), squares[None]])

    def _ratios(self, sums: list[float]) -> dict[str, float]:
        return {**super()._ratios(sums), "aligned_rmse": (sums[2] / sums[1]) ** 0.5}


class NormalMetric(DenseRegressionMetric):
    """Mean angle in degrees between predicted and true normals, shares below limits, and `mae`.

    `within_30` is the share of the valid pixels whose angle is below 30 degrees.
    """

    limits = (11.25, 22.5, 30.0)
    size = 3 + len(limits)
    primary = "angle"

    def _sums(self, prediction: Tensor, target: Tensor, mask: Tensor) -> Tensor:
        predicted, true = (natural_values(self.spec, v.double()) for v in (prediction, target))
        cosines = F.cosine_similarity(predicted, true, dim=1)[mask]
        angles = torch.rad2deg(torch.acos(cosines.clamp(-1, 1)))
        below = [(angles < limit).sum() for limit in self.limits]
        return torch.stack([*super()._sums(prediction, target, mask), angles.sum(), *below])

    def _ratios(self, sums: list[float]) -> dict[str, float]:
        shares = {
            f"within_{limit:g}": count / sums[1]
            for limit, count in zip(self.limits, sums[3:], strict=True)
        }
        return {"angle": sums[2] / sums[1], **super()._ratios(sums), **shares}


class ResponseMetric(DenseRegressionMetric):
    """`mae`, and F1 of the pixels whose natural value is above `positive_above`.

    True and predicted maps are cut at the same value; F1 is zero where neither has such a pixel.
    """

    size = 5

    def _sums(self, prediction: Tensor, target: Tensor, mask: Tensor) -> Tensor:
        assert self.spec.positive_above is not None
        called, true = (
            natural_values(self.spec, values.double())[:, 0][mask] > self.spec.positive_above
            for values in (prediction, target)
        )
        counts = [(called & true).sum(), called.sum(), true.sum()]
        return torch.stack([*super()._sums(prediction, target, mask), *counts])

    def _ratios(self, sums: list[float]) -> dict[str, float]:
        hits, called, true = sums[2:]
        f1 = 2 * hits / (called + true) if called + true else 0.0
        return {**super()._ratios(sums), "f1": f1}


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


def _aligned_residuals(prediction: Tensor, target: Tensor, mask: Tensor) -> Tensor:
    """Return target minus the best `factor * prediction + summand`, zero outside the mask.

    Args:
        prediction: [B,C,H,W].
        target: [B,C,H,W].
        mask: [B,1,H,W].
    """

    def centred(values: Tensor) -> Tensor:
        # Equal values must become exact zeros, or the factor would be a ratio of rounding errors.
        top = torch.where(mask, values, -torch.inf).amax(dim=(2, 3), keepdim=True)
        values = torch.where(mask, values - top, 0.0)
        mean = values.sum(dim=(2, 3), keepdim=True) / num_pixels
        return torch.where(mask, values - mean, 0.0)

    num_pixels = mask.sum(dim=(2, 3), keepdim=True).clamp_min(1)
    predicted, true = centred(prediction), centred(target)
    spread = predicted.square().sum(dim=(2, 3), keepdim=True)
    shared = (predicted * true).sum(dim=(2, 3), keepdim=True)
    return true - torch.where(spread > 0, shared / spread, 0.0) * predicted
