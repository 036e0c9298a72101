"""Binary cross-entropy with one logit.

Legend: n tasks (or heads) of one signature, B batch.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from dmtg.plugins import register_loss
from model.losses.loss import ClassLoss, masked
from model.losses.options import LABEL_SMOOTHING, POS_WEIGHT, LossOption
from model.tasks.constant import ClassCounts
from model.tasks.targets import Targets


@register_loss("bce")
class BinaryCrossEntropy(ClassLoss):
    """Binary cross-entropy of one logit per sample.

    `pos_weight` multiplies the loss of positives. `label_smoothing` replaces the targets 0 and 1
    by ε/2 and 1 - ε/2.
    """

    kinds = ("binary",)
    takes_ids = False
    options: ClassVar[Mapping[str, LossOption]] = {
        "pos_weight": POS_WEIGHT,
        "label_smoothing": LABEL_SMOOTHING,
    }

    def sample_losses(self, prediction: Tensor, targets: Targets) -> Tensor:
        """Return the cross-entropy of every sample, see `Loss.sample_losses`."""
        prediction = masked(prediction, targets)
        target = targets.target.view(prediction.shape)
        options = targets.numbers_like(target)
        smoothing, pos_weight = options.get("label_smoothing"), options.get("pos_weight")
        if smoothing is not None:
            target = target * (1 - smoothing) + smoothing / 2
        losses = F.binary_cross_entropy_with_logits(
            prediction, target, reduction="none", pos_weight=pos_weight
        )
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
