"""The paper's relaxation of a Categorical distribution, sampled anew for every sample."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor

from dmtg.plugins import register_sampler
from model.grouping.samplers.sampler import Sampler, relaxed


@register_sampler("gumbel_per_sample")
class GumbelPerSample(Sampler):
    """softmax((logits + noise) / temperature), with noise for every sample."""

    per_sample: ClassVar[bool] = True

    def weights(self, logits: Tensor, noise: Tensor, temperature: float) -> Tensor:
        """Return the relaxation of the noise."""
        return relaxed(logits, noise, temperature)
