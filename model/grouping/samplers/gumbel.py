"""The paper's relaxation of a Categorical distribution."""

from __future__ import annotations

from torch import Tensor

from dmtg.plugins import register_sampler
from model.grouping.samplers.sampler import Sampler, relaxed


@register_sampler("gumbel")
class Gumbel(Sampler):
    """softmax((logits + noise) / temperature), with one noise for all samples."""

    def weights(self, logits: Tensor, noise: Tensor, temperature: float) -> Tensor:
        """Return the relaxation of the noise."""
        return relaxed(logits, noise, temperature)
