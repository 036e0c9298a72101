"""The relaxation as `torch.distributions.RelaxedOneHotCategorical` writes it."""

from __future__ import annotations

from torch import Tensor

from dmtg.plugins import register_sampler
from model.grouping.samplers.sampler import Sampler, relaxed


@register_sampler("relaxed_one_hot")
class RelaxedOneHot(Sampler):
    """The gumbel relaxation of normalised logits, with the gradient of torch's distribution."""

    def weights(self, logits: Tensor, noise: Tensor, temperature: float) -> Tensor:
        """Return the relaxation of the noise."""
        return relaxed(logits.log_softmax(dim=1), noise, temperature)
