"""The focal loss.

Legend: n tasks (or heads) of one signature, B batch, C classes, H, W.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import Tensor

from dmtg.plugins import register_loss
from model.losses.cross_entropy import CrossEntropy, log_likelihood, weight_of
from model.losses.loss import masked
from model.losses.options import CLASS_WEIGHTS, LossOption
from model.tasks.targets import Targets

_GAMMA = 2.0


@register_loss("focal")
class Focal(CrossEntropy):
    """Cross-entropy times (1 - p)^gamma, with p the probability of the true class.

    See Lin et al. 2017 (arXiv 1708.02002, eq. 5). `class_weights` are its alpha, and p is a
    softmax; a binary task has two logits. With `gamma` 0 this is the weighted cross-entropy.
    """

    options: ClassVar[Mapping[str, LossOption]] = {
        "gamma": LossOption(_GAMMA, "of at least 0", lambda value: value >= 0),
        "class_weights": CLASS_WEIGHTS,
    }

    def sample_losses(self, prediction: Tensor, targets: Targets) -> Tensor:
        """Return the focal loss of every sample, see `Loss.sample_losses`."""
        ids = targets.target.clamp_min(0)
        log_p = log_likelihood(masked(prediction, targets), ids)
        gamma = targets.numbers_like(log_p).get("gamma", _GAMMA)
        # Never zero: a power below one has an infinite slope there.
        miss = (-log_p.expm1()).clamp_min(torch.finfo(log_p.dtype).tiny)
        losses = -(miss**gamma) * log_p
        if "class_weights" in targets.options:
            losses = losses * weight_of(ids, targets.options["class_weights"])
        losses = torch.where(targets.mask, losses, 0.0)
        return losses.view(*targets.valid.shape, -1).sum(dim=2)
