"""Weights without noise."""

from __future__ import annotations

from torch import Tensor

from dmtg.plugins import register_sampler
from model.grouping.samplers.sampler import Sampler


@register_sampler("softmax")
class Softmax(Sampler):
    """softmax(logits / temperature)."""

    def weights(
        self,
        logits: Tensor,
        noise: Tensor,  # noqa: ARG002
        temperature: float,
    ) -> Tensor:
        """Return the distributions at the temperature."""
        return (logits / temperature).softmax(dim=1)
