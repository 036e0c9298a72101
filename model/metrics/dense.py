"""Metrics of the tasks with a label for every pixel.

Legend: B batch, C channels or classes, H, W.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from dmtg.plugins import register_metric
from model.metrics.base import Metric, ValueMetric, natural_errors, within
from model.tasks.decode import class_ids, natural_values, per_channel


@register_metric("dense_regression")
class DenseRegressionMetric(ValueMetric):
    """Mean absolute error in the natural unit over the valid pixels and the channels."""

    kinds = ("dense_regression",)
    size = 2
    primary = "mae"

    def sums(self, prediction: Tensor, target: Tensor, mask: Tensor) -> Tensor:
        errors = natural_errors(self.spec, prediction, target).mean(dim=1)
        errors = within(mask, errors, 0.0)
        return torch.stack([errors.sum(), mask.sum()])

    def ratios(self, sums: list[float]) -> dict[str, float]:
        return {"mae": sums[0] / sums[1]}


@register_metric("depth")
class DepthMetric(DenseRegressionMetric):
    """`mae`, and `aligned_rmse`: the error after a fit of each image's scale and shift.

    Every predicted map is scaled and shifted by the least-squares fit to its valid pixels (one
    factor and one summand per channel; the factor may be negative). The root mean square is over
    all valid pixels of the split, in the natural unit, not a mean of one number per image. The
    factor of a constant prediction is 0, and an image with a single valid pixel adds no error.
    """

    size = 3

    def sums(self, prediction: Tensor, target: Tensor, mask: Tensor) -> Tensor:
        residuals = _aligned_residuals(prediction.double(), target.double(), mask[:, None])
        unit = per_channel(self.spec.scale, residuals) * self.spec.unit_scale
        squares = (residuals * unit).square().mean(dim=1).sum()
        return torch.cat([super().sums(prediction, target, mask), squares[None]])

    def ratios(self, sums: list[float]) -> dict[str, float]:
        return {**super().ratios(sums), "aligned_rmse": (sums[2] / sums[1]) ** 0.5}


@register_metric("normal")
class NormalMetric(DenseRegressionMetric):
    """Mean angle in degrees between predicted and true normals, fractions below limits, and `mae`.

    `within_30` is the fraction of the valid pixels whose angle is below 30 degrees.
    """

    limits = (11.25, 22.5, 30.0)
    size = 3 + len(limits)
    primary = "angle"

    def sums(self, prediction: Tensor, target: Tensor, mask: Tensor) -> Tensor:
        predicted, true = (natural_values(self.spec, v.double()) for v in (prediction, target))
        # The angle of a filler is zero, so that it counts below all limits.
        cosines = within(mask, F.cosine_similarity(predicted, true, dim=1), 1.0)
        angles = torch.rad2deg(torch.acos(cosines.clamp(-1, 1)))
        num_fillers = angles.numel() - mask.sum()
        below = [(angles < limit).sum() - num_fillers for limit in self.limits]
        return torch.stack([*super().sums(prediction, target, mask), angles.sum(), *below])

    def ratios(self, sums: list[float]) -> dict[str, float]:
        fractions = {
            f"within_{limit:g}": count / sums[1]
            for limit, count in zip(self.limits, sums[3:], strict=True)
        }
        return {"angle": sums[2] / sums[1], **super().ratios(sums), **fractions}


@register_metric("response")
class ResponseMetric(DenseRegressionMetric):
    """`mae`, and F1 of the pixels whose natural value is above `positive_above`.

    True and predicted maps have the same threshold; F1 is zero if neither has such a pixel.
    """

    needs = ("positive_above",)
    size = 5

    def sums(self, prediction: Tensor, target: Tensor, mask: Tensor) -> Tensor:
        assert self.spec.positive_above is not None
        predicted, true = (
            mask & (natural_values(self.spec, values.double())[:, 0] > self.spec.positive_above)
            for values in (prediction, target)
        )
        counts = [(predicted & true).sum(), predicted.sum(), true.sum()]
        return torch.stack([*super().sums(prediction, target, mask), *counts])

    def ratios(self, sums: list[float]) -> dict[str, float]:
        hits, predicted, true = sums[2:]
        f1 = 2 * hits / (predicted + true) if predicted + true else 0.0
        return {**super().ratios(sums), "f1": f1}


@register_metric("dense_classification")
class DenseClassificationMetric(Metric):
    """Mean intersection over union of the classes that occur in the labels, and pixel error."""

    kinds = ("dense_classification",)
    primary = "miou"
    higher_is_better = True

    @property
    def size(self) -> int:
        """Length of a state: the flattened confusion matrix, true class first."""
        return self.spec.outputs**2

    def sums(self, prediction: Tensor, target: Tensor, mask: Tensor) -> Tensor:
        cells = target * self.spec.outputs + class_ids(self.spec, prediction)
        cells = torch.where(mask, cells, self.size).flatten()  # one more, for masked pixels
        # `bincount` waits for the largest value.
        counts = torch.zeros(self.size + 1, dtype=torch.long, device=cells.device)
        return counts.index_add_(0, cells, torch.ones_like(cells))[: self.size]

    def ratios(self, sums: list[float]) -> dict[str, float]:
        confusion = torch.tensor(sums, dtype=torch.float64).view(self.spec.outputs, -1)
        hits, true, predicted = confusion.diag(), confusion.sum(dim=1), confusion.sum(dim=0)
        present = true > 0
        overlap = hits[present] / (true + predicted - hits)[present]
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
        # Equal values must become exact zeros: the factor would be a ratio of rounding errors.
        top = torch.where(mask, values, -torch.inf).amax(dim=(2, 3), keepdim=True)
        values = torch.where(mask, values - top, 0.0)
        mean = values.sum(dim=(2, 3), keepdim=True) / num_pixels
        return torch.where(mask, values - mean, 0.0)

    num_pixels = mask.sum(dim=(2, 3), keepdim=True).clamp_min(1)
    predicted, true = centred(prediction), centred(target)
    spread = predicted.square().sum(dim=(2, 3), keepdim=True)
    products = (predicted * true).sum(dim=(2, 3), keepdim=True)
    return true - torch.where(spread > 0, products / spread, 0.0) * predicted
