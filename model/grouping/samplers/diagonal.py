"""A fixed assignment of tasks to branches."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from dmtg.plugins import register_sampler
from model.grouping.samplers.sampler import Sampler


@register_sampler("diagonal")
class Diagonal(Sampler):
    """All weight of task n on branch n modulo K, whatever the logits are."""

    def weights(
        self,
        logits: Tensor,
        noise: Tensor,  # noqa: ARG002
        temperature: float,  # noqa: ARG002
    ) -> Tensor:
        """Return the assignment."""
        return self.probabilities(logits)

    def probabilities(self, logits: Tensor) -> Tensor:
        """Return the assignment."""
        return diagonal(*logits.shape).to(logits.device)


def diagonal(num_tasks: int, num_branches: int) -> Tensor:
    """Return [N,K] with a one on branch n modulo K of every task n."""
    return F.one_hot(torch.arange(num_tasks) % num_branches, num_branches).float()
