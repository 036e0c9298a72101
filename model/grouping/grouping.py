"""The learned grouping: for every task a Categorical distribution over the branches.

It stays outside the training engine, in fp32 under every precision: a step of 1e-3 on a logit
near one is lost in bf16.

Legend: N tasks, K branches, S samples.
"""

from __future__ import annotations

from typing import Literal, get_args

import numpy as np
import torch
from torch import Tensor, nn

from dmtg.plugins import SAMPLERS
from model.grouping.samplers.diagonal import diagonal
from model.grouping.samplers.sampler import Sampler

LogitsInit = Literal["equal", "diagonal", "gaussian"]
EntropyForm = Literal["binary", "plain"]


class Grouping(nn.Module):
    """Logits of the N distributions, and which of the N*K heads are alive.

    Args:
        sampler: Name of a registered `Sampler`, which gives the weights of `sample`.
        logits_init: Logits are all `logits_value` (`equal`), `logits_value` on the branch of the
            task's number modulo K and zero elsewhere (`diagonal`), or normal with standard
            deviation `logits_value` (`gaussian`).
        logits_value: See `logits_init`.
        logits_noise: Width of uniform noise added to the initial values.
        seed: Of the noise and of `gaussian`.

    Raises:
        ValueError: If the sampler or `logits_init` is unknown.
    """

    alive: Tensor

    def __init__(
        self,
        num_tasks: int,
        num_branches: int,
        sampler: str = "gumbel",
        logits_init: LogitsInit = "equal",
        logits_value: float = 1.0,
        logits_noise: float = 0.0,
        seed: int = 0,
    ) -> None:
        super().__init__()
        for name, value, allowed in (
            ("sampler", sampler, SAMPLERS.names()),
            ("logits_init", logits_init, get_args(LogitsInit)),
        ):
            if value not in allowed:
                names = ", ".join(allowed)
                raise ValueError(f"grouping.{name} is {value!r}, must be one of {names}")
        self.sampler = sampler
        self._sampler: Sampler = SAMPLERS[sampler]()
        generator = torch.Generator().manual_seed(seed)
        noise = torch.rand(num_tasks, num_branches, generator=generator)
        if logits_init == "diagonal":
            values = logits_value * diagonal(num_tasks, num_branches)
        elif logits_init == "gaussian":
            values = logits_value * torch.randn(num_tasks, num_branches, generator=generator)
        else:
            values = torch.full((num_tasks, num_branches), logits_value)
        self.logits = nn.Parameter(values + logits_noise * noise)
        self.register_buffer("alive", torch.ones(num_tasks, num_branches, dtype=torch.bool))

    def _alive_logits(self) -> Tensor:
        return self.logits.masked_fill(~self.alive, -torch.inf)

    @property
    def per_sample(self) -> bool:
        """Whether `sample` takes noise and gives weights for every sample."""
        return self._sampler.per_sample

    @torch.no_grad()
    def probabilities(self) -> Tensor:
        """Return the distributions [N,K]; heads that are switched off have probability zero."""
        return self._sampler.probabilities(self._alive_logits())

    def sample(self, noise: Tensor, tau: float) -> Tensor:
        """Return the sampler's weights z of the heads, over those that are alive.

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
        return self._sampler.weights(self._alive_logits(), noise, tau)

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


def _times_log(log_p: Tensor) -> Tensor:
    """Return -p log p, zero with a zero gradient where p is zero."""
    finite = log_p.clamp_min(torch.finfo(log_p.dtype).min)
    return -finite.exp() * finite


def _log_others(log_p: Tensor) -> Tensor:
    """Return log(1 - p_k) as the logarithm of the sum over the others, exact for p_k near one."""
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
        step: The generator's counter: every step has other noise, without any state to save.
        rank: Of the process; zero for noise that is the same on all processes.
    """
    generator = np.random.Generator(np.random.Philox(key=[seed, rank], counter=[0, 0, step, 0]))
    uniform = np.maximum(generator.random(shape), np.finfo(np.float64).tiny)
    return torch.from_numpy(-np.log(-np.log(uniform))).to(torch.float32)
