"""Cross-entropy with one logit per class."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from dmtg.plugins import register_loss
from model.losses.loss import ClassLoss, masked
from model.tasks.targets import IGNORED, Targets


@register_loss("cross_entropy")
class CrossEntropy(ClassLoss):
    """Cross-entropy of a sample, or its sum over the labelled pixels of a dense task."""

    kinds = ("binary", "multiclass", "dense_classification")

    def sample_losses(self, prediction: Tensor, targets: Targets) -> Tensor:
        """Return the cross-entropy of every sample, see `Loss.sample_losses`."""
        prediction = masked(prediction, targets)
        losses = F.cross_entropy(
            prediction.flatten(0, 1),
            targets.target.flatten(0, 1),
            ignore_index=IGNORED,
            reduction="none",
        )
        return losses.view(*prediction.shape[:2], -1).sum(dim=2)

    def sample_weights(self, targets: Targets) -> Tensor:
        """Return one for a labelled sample; for a dense task the number of its labelled pixels."""
        if targets.mask.ndim == 4:
            return targets.mask.flatten(2).sum(dim=2, dtype=torch.float32)
        return super().sample_weights(targets)
