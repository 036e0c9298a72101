"""One-hot weights with the gradient of a relaxation."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from dmtg.plugins import register_sampler
from model.grouping.samplers.sampler import Sampler, relaxed


@register_sampler("straight_through")
class StraightThrough(Sampler):
    """All weight for the largest weight of the relaxation, with the relaxation's gradient."""

    def weights(self, logits: Tensor, noise: Tensor, temperature: float) -> Tensor:
        """Return one-hot weights."""
        soft = relaxed(logits, noise, temperature)
        hard = F.one_hot(soft.argmax(dim=1), soft.shape[1]).to(soft.dtype)
        # The bracket is exactly zero, so the weights are exactly one-hot.
        return hard + (soft - soft.detach())
