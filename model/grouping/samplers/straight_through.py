"""One-hot weights with the gradient of a relaxation."""

from __future__ import annotations

import torch
from torch import Tensor

from dmtg.plugins import register_sampler
from model.grouping.samplers.sampler import Sampler, relaxed


@register_sampler("straight_through")
class StraightThrough(Sampler):
    """All weight for the largest weight of the relaxation, with the relaxation's gradient."""

    def weights(self, logits: Tensor, noise: Tensor, temperature: float) -> Tensor:
        """Return one-hot weights."""
        soft = relaxed(logits, noise, temperature)
        hard = torch.zeros_like(soft).scatter_(1, soft.argmax(dim=1, keepdim=True), 1.0)
        # The bracket is exactly zero, so the weights are exactly one-hot.
        return hard + (soft - soft.detach())
