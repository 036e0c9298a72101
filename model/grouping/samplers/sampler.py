"""What a sampler defines.

Legend: N tasks, K branches, S samples.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar

from torch import Tensor


class Sampler(ABC):
    """Weights of the heads from the logits; `dmtg.plugins.register_sampler` gives it its name.

    A sampler is made without arguments and has no state: all randomness is in the noise.

    Attributes:
        per_sample: Whether every sample gets noise and weights for itself, [N,K,S].
    """

    per_sample: ClassVar[bool] = False

    @abstractmethod
    def weights(self, logits: Tensor, noise: Tensor, temperature: float) -> Tensor:
        """Return the weights z of the heads, which sum to one over the branches of each task.

        Args:
            logits: fp32 [N,K]; minus infinity for a head that is switched off, whose weight must
                be zero.
            noise: Standard Gumbel noise [N,K], or [N,K,S] for weights per sample.
            temperature: Above zero.

        Returns:
            [N,K] or [N,K,S], differentiable in the logits unless the weights are fixed.
        """

    def probabilities(self, logits: Tensor) -> Tensor:
        """Return the distributions of the tasks over the branches [N,K], without noise.

        Args:
            logits: As in `weights`.
        """
        return logits.softmax(dim=1)


def relaxed(logits: Tensor, noise: Tensor, temperature: float) -> Tensor:
    """Return the Gumbel-softmax relaxation softmax((logits + noise) / temperature).

    Args:
        logits: [N,K].
        noise: [N,K] or [N,K,S].
        temperature: Above zero.
    """
    if noise.ndim == 3:
        logits = logits.unsqueeze(2)
    return ((logits + noise) / temperature).softmax(dim=1)
