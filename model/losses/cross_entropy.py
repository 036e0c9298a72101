"""Cross-entropy with one logit per class.

Legend: n tasks (or heads) of one signature, B batch, C classes, H, W.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from dmtg.plugins import register_loss
from model.losses.loss import ClassLoss, masked
from model.losses.options import CLASS_WEIGHTS, LABEL_SMOOTHING, LossOption
from model.tasks.targets import IGNORED, Targets


@register_loss("cross_entropy")
class CrossEntropy(ClassLoss):
    """Cross-entropy of a sample, or its sum over the labelled pixels of a dense task.

    `class_weights` and `label_smoothing` are those of `torch.nn.functional.cross_entropy`: the mean
    loss is divided by the sum of the weights of the labels.
    """

    kinds = ("binary", "multiclass", "dense_classification")
    options: ClassVar[Mapping[str, LossOption]] = {
        "class_weights": CLASS_WEIGHTS,
        "label_smoothing": LABEL_SMOOTHING,
    }

    def sample_losses(self, prediction: Tensor, targets: Targets) -> Tensor:
        """Return the cross-entropy of every sample, see `Loss.sample_losses`."""
        prediction = masked(prediction, targets)
        if targets.options:
            losses = torch.where(targets.mask, self._with_options(prediction, targets), 0.0)
        else:
            losses = F.cross_entropy(
                prediction.flatten(0, 1),
                targets.target.flatten(0, 1),
                ignore_index=IGNORED,
                reduction="none",
            )
        return losses.view(*prediction.shape[:2], -1).sum(dim=2)

    def _with_options(self, prediction: Tensor, targets: Targets) -> Tensor:
        """Return the losses of all elements [n,B] or [n,B,H,W]; of masked ones any finite values.

        Args:
            prediction: fp32 [n,B,C] or [n,B,C,H,W], zero where it is masked.
        """
        ids = targets.target.clamp_min(0)
        losses = -log_likelihood(prediction, ids)
        weights = targets.options.get("class_weights")
        if weights is not None:
            losses = losses * weight_of(ids, weights)
        smoothing = targets.numbers_like(losses).get("label_smoothing")
        if smoothing is None:
            return losses
        log_p = prediction.log_softmax(dim=2)
        if weights is not None:
            log_p = log_p * weights.view(len(weights), 1, -1, *[1] * (log_p.ndim - 3))
        return (1 - smoothing) * losses - smoothing * log_p.mean(dim=2)

    def sample_weights(self, targets: Targets) -> Tensor:
        """Return the sum of the weights of a sample's labels; without weights their number."""
        if "class_weights" in targets.options:
            weights = weight_of(targets.target.clamp_min(0), targets.options["class_weights"])
            weights = torch.where(targets.mask, weights, 0.0)
            return weights.view(*targets.valid.shape, -1).sum(dim=2)
        if targets.mask.ndim == 4:
            return targets.mask.flatten(2).sum(dim=2, dtype=torch.float32)
        return super().sample_weights(targets)


def log_likelihood(prediction: Tensor, ids: Tensor) -> Tensor:
    """Return the logarithm of the probability of the class ids [n,B] or [n,B,H,W].

    Args:
        prediction: Logits, fp32 [n,B,C] or [n,B,C,H,W].
        ids: Long, from 0 to C - 1.
    """
    return prediction.log_softmax(dim=2).gather(2, ids.unsqueeze(2)).squeeze(2)


def weight_of(ids: Tensor, weights: Tensor) -> Tensor:
    """Return the weight of every class id [n,B] or [n,B,H,W], from weights [n,C]."""
    return weights.gather(1, ids.flatten(1)).view(ids.shape)
