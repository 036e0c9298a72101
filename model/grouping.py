"""The learned grouping: for every task a relaxed Categorical distribution over the branches.

It stays outside the training engine, in fp32 under every precision: a step of 1e-3 on a logit
near one is lost in bf16.

Legend: N tasks, K branches.
"""

from __future__ import annotations

from typing import Literal, get_args

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

Sampler = Literal["gumbel", "straight_through"]


class Grouping(nn.Module):
    """Logits of the N distributions, and which of the N*K heads are alive.

    Args:
        sampler: `gumbel` weighs all branches by the relaxed sample; `straight_through` gives one
            branch the whole weight and uses the gradient of the relaxed sample.
        init: Start value of every logit.
        init_noise: Width of uniform noise added to the start values.
        seed: Of that noise.

    Raises:
        ValueError: If the sampler is unknown.
    """

    alive: Tensor

    def __init__(
        self,
        num_tasks: int,
        num_branches: int,
        sampler: Sampler = "gumbel",
        init: float = 1.0,
        init_noise: float = 0.0,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if sampler not in get_args(Sampler):
            allowed = ", ".join(get_args(Sampler))
            raise ValueError(f"grouping.sampler is {sampler!r}, must be one of {allowed}")
        self.sampler = sampler
        generator = torch.Generator().manual_seed(seed)
        noise = torch.rand(num_tasks, num_branches, generator=generator)
        self.logits = nn.Parameter(init + init_noise * noise)
        self.register_buffer("alive", torch.ones(num_tasks, num_branches, dtype=torch.bool))

    def _alive_logits(self) -> Tensor:
        return self.logits.masked_fill(~self.alive, -torch.inf)

    @torch.no_grad()
    def probabilities(self) -> Tensor:
        """Return the distributions [N,K]; heads that are switched off have probability zero."""
        return self._alive_logits().softmax(dim=1)

    def sample(self, noise: Tensor, tau: float) -> Tensor:
        """Draw the weights z [N,K] of the heads, differentiable in the logits.

        The relaxed sample is the paper's Gumbel-softmax, softmax((logits + noise) / tau), taken
        over the heads that are alive.

        Args:
            noise: Standard Gumbel noise [N,K].
            tau: Temperature, above zero.

        Raises:
            ValueError: If tau is not above zero.
        """
        if tau <= 0:
            raise ValueError(f"grouping temperature tau is {tau!r}, must be above 0")
        relaxed = ((self._alive_logits() + noise) / tau).softmax(dim=1)
        if self.sampler == "gumbel":
            return relaxed
        hard = F.one_hot(relaxed.argmax(dim=1), relaxed.shape[1]).to(relaxed.dtype)
        # The bracket is exactly zero, so the weights are exactly one-hot.
        return hard + (relaxed - relaxed.detach())

    def logit_gradient(self, z: Tensor, losses: Tensor) -> Tensor:
        """Return the gradient [N,K] of sum(z * losses) in the logits, zero where not alive.

        Args:
            z: Weights from `sample`.
            losses: Loss of every head [N,K], taken as constant.
        """
        losses = torch.where(self.alive, losses.detach().float(), 0.0)
        (gradient,) = torch.autograd.grad((z * losses).sum(), self.logits)
        return torch.where(self.alive, gradient, 0.0)

    def choice(self) -> Tensor:
        """Return the most probable branch of every task, long [N]; the lowest of equals."""
        return torch.from_numpy(self._alive_logits().detach().cpu().numpy().argmax(axis=1))

    def heads(self) -> list[tuple[int, int]]:
        """Return the heads that are alive as (task, branch)."""
        return [(task, branch) for task, branch in self.alive.nonzero().tolist()]


def gumbel_noise(shape: tuple[int, ...], seed: int, step: int, rank: int = 0) -> Tensor:
    """Return standard Gumbel noise as a pure function of its arguments, fp32 on the CPU.

    Args:
        seed: Of the run; with rank the key of the generator (Philox, numpy).
        step: Its counter: every step has noise of its own, without any state to save.
        rank: Of the process; leave it at zero for noise that all processes share.
    """
    generator = np.random.Generator(np.random.Philox(key=[seed, rank], counter=[0, 0, step, 0]))
    uniform = np.maximum(generator.random(shape), np.finfo(np.float64).tiny)
    return torch.from_numpy(-np.log(-np.log(uniform))).to(torch.float32)
