"""The learned grouping: for every task a Categorical distribution over the branches.

It stays outside the training engine, in fp32 under every precision: a step of 1e-3 on a logit
near one is lost in bf16.

Legend: N tasks, K branches, S samples.
"""

from __future__ import annotations

from typing import Literal, get_args

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

Sampler = Literal[
    "gumbel", "gumbel_per_sample", "straight_through", "softmax", "relaxed_one_hot", "diagonal"
]
Start = Literal["equal", "diagonal", "gaussian"]
EntropyForm = Literal["binary", "plain"]


class Grouping(nn.Module):
    """Logits of the N distributions, and which of the N*K heads are alive.

    Args:
        sampler: How `sample` makes weights of the logits, see there.
        start: Logits are all `init` (`equal`), `init` on the branch of the task's own number modulo
            K and zero elsewhere (`diagonal`), or normal with deviation `init` (`gaussian`).
        init: See `start`.
        init_noise: Width of uniform noise added to the start values.
        seed: Of the noise and of `gaussian`.

    Raises:
        ValueError: If the sampler or the start is unknown.
    """

    alive: Tensor

    def __init__(
        self,
        num_tasks: int,
        num_branches: int,
        sampler: Sampler = "gumbel",
        start: Start = "equal",
        init: float = 1.0,
        init_noise: float = 0.0,
        seed: int = 0,
    ) -> None:
        super().__init__()
        for name, value, allowed in (("sampler", sampler, Sampler), ("logits_init", start, Start)):
            if value not in get_args(allowed):
                names = ", ".join(get_args(allowed))
                raise ValueError(f"grouping.{name} is {value!r}, must be one of {names}")
        self.sampler = sampler
        generator = torch.Generator().manual_seed(seed)
        noise = torch.rand(num_tasks, num_branches, generator=generator)
        if start == "diagonal":
            values = init * diagonal(num_tasks, num_branches)
        elif start == "gaussian":
            values = init * torch.randn(num_tasks, num_branches, generator=generator)
        else:
            values = torch.full((num_tasks, num_branches), init)
        self.logits = nn.Parameter(values + init_noise * noise)
        self.register_buffer("alive", torch.ones(num_tasks, num_branches, dtype=torch.bool))

    def _alive_logits(self) -> Tensor:
        return self.logits.masked_fill(~self.alive, -torch.inf)

    @torch.no_grad()
    def probabilities(self) -> Tensor:
        """Return the distributions [N,K]; heads that are switched off have probability zero."""
        if self.sampler == "diagonal":
            return self._diagonal()
        return self._alive_logits().softmax(dim=1)

    def _diagonal(self) -> Tensor:
        return diagonal(*self.logits.shape).to(self.logits.device)

    def sample(self, noise: Tensor, tau: float) -> Tensor:
        """Draw the weights z of the heads, over those that are alive.

        `gumbel` is the paper's relaxation, softmax((logits + noise) / tau), and `gumbel_per_sample`
        the same with noise for every sample. `relaxed_one_hot` writes it as torch's distribution
        of that name does, with a gradient. `straight_through` gives the relaxation's largest weight
        all, and has its gradient. `softmax` has no noise. `diagonal` is fixed: task n on branch
        n modulo K.

        Args:
            noise: Standard Gumbel noise [N,K], or [N,K,S] for weights per sample.
            tau: Temperature, above zero.

        Returns:
            Weights of the noise's shape, differentiable in the logits unless they are fixed.

        Raises:
            ValueError: If tau is not above zero.
        """
        if tau <= 0:
            raise ValueError(f"grouping temperature tau is {tau!r}, must be above 0")
        if self.sampler == "diagonal":
            return self._diagonal()
        logits = self._alive_logits()
        if self.sampler == "softmax":
            return (logits / tau).softmax(dim=1)
        if self.sampler == "relaxed_one_hot":
            logits = logits.log_softmax(dim=1)
        if noise.ndim == 3:
            logits = logits.unsqueeze(2)
        relaxed = ((logits + noise) / tau).softmax(dim=1)
        if self.sampler != "straight_through":
            return relaxed
        hard = F.one_hot(relaxed.argmax(dim=1), relaxed.shape[1]).to(relaxed.dtype)
        # The bracket is exactly zero, so the weights are exactly one-hot.
        return hard + (relaxed - relaxed.detach())

    def logit_gradient(self, z: Tensor, losses: Tensor) -> Tensor:
        """Return the gradient [N,K] of sum(z * losses) in the logits, zero where not alive.

        Args:
            z: Weights from `sample`.
            losses: Loss of every head, of the shape of z, taken as constant.
        """
        if not z.requires_grad:
            return torch.zeros_like(self.logits)
        alive = self.alive if z.ndim == 2 else self.alive.unsqueeze(2)
        losses = torch.where(alive, losses.detach().float(), 0.0)
        (gradient,) = torch.autograd.grad((z * losses).sum(), self.logits)
        return torch.where(self.alive, gradient, 0.0)

    def entropy(self, form: EntropyForm = "binary") -> Tensor:
        """Return the mean entropy of the tasks' distributions, in nats, differentiable.

        `binary` adds the entropies of the K events "the task is on branch k" (the published form),
        `plain` is that of the Categorical. Both have finite values and gradients however sharp
        the distributions are.
        """
        log_p = self._alive_logits().log_softmax(dim=1)
        entropies = _times_log(log_p)
        if form == "binary":
            entropies = entropies + _times_log(_log_others(log_p))
        return torch.where(self.alive, entropies, 0.0).sum(dim=1).mean()

    def heads(self) -> list[tuple[int, int]]:
        """Return the heads that are alive as (task, branch)."""
        return [(task, branch) for task, branch in self.alive.nonzero().tolist()]


def diagonal(num_tasks: int, num_branches: int) -> Tensor:
    """Return [N,K] with a one on branch n modulo K of every task n."""
    return F.one_hot(torch.arange(num_tasks) % num_branches, num_branches).float()


def _times_log(log_p: Tensor) -> Tensor:
    """Return -p log p, zero with a zero gradient where p is zero."""
    finite = log_p.clamp_min(torch.finfo(log_p.dtype).min)
    return -finite.exp() * finite


def _log_others(log_p: Tensor) -> Tensor:
    """Return log(1 - p_k) as the logarithm of what the others have, exact where p_k is near one."""
    num_branches = log_p.shape[1]
    itself = torch.eye(num_branches, dtype=torch.bool, device=log_p.device)
    # Not minus infinity: where all others are that, the gradient of logsumexp would be NaN.
    lowest = torch.finfo(log_p.dtype).min / (2 * num_branches)
    others = log_p.clamp_min(lowest).unsqueeze(1).expand(-1, num_branches, -1)  # [N,K,K]
    return others.masked_fill(itself, lowest).logsumexp(dim=2)


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
