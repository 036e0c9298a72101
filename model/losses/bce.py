"""Binary cross-entropy with one logit."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from dmtg.plugins import register_loss
from model.losses.loss import ClassLoss, masked
from model.tasks.constant import ClassCounts
from model.tasks.targets import Targets


@register_loss("bce")
class BinaryCrossEntropy(ClassLoss):
    """Binary cross-entropy of one logit per sample."""

    kinds = ("binary",)
    takes_ids = False

    def sample_losses(self, prediction: Tensor, targets: Targets) -> Tensor:
        """Return the cross-entropy of every sample, see `Loss.sample_losses`."""
        prediction = masked(prediction, targets)
        target = targets.target.view(prediction.shape)
        losses = F.binary_cross_entropy_with_logits(prediction, target, reduction="none")
        return torch.where(targets.valid, losses.squeeze(2), 0.0)

    def outputs(self, channels: int) -> int:
        """Return one logit."""
        return channels

    def probability(self, prediction: Tensor) -> Tensor:
        """Return the sigmoid of the logit."""
        return prediction[:, 0].sigmoid()

    def positive(self, prediction: Tensor) -> Tensor:
        """Return whether the logit is above zero."""
        return prediction[:, 0] > 0

    def constant(self, counts: ClassCounts) -> Tensor:
        """Return a logit [1] of the sign of the most frequent class."""
        return torch.tensor([2.0 * counts.most_frequent - 1.0])
