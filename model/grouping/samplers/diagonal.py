"""A fixed assignment of tasks to branches."""

from __future__ import annotations

import torch
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
        num_tasks, num_branches = logits.shape
        return diagonal(num_tasks, num_branches, logits.device)


def diagonal(num_tasks: int, num_branches: int, device: torch.device | None = None) -> Tensor:
    """Return [N,K] with a one on branch n modulo K of every task n."""
    tasks, branches = (torch.arange(n, device=device) for n in (num_tasks, num_branches))
    return (tasks[:, None] % num_branches == branches).float()
