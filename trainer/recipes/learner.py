"""What every way of finding the groups has in common: live heads, pruning, state.

Legend: N tasks, K branches, S samples.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor

from model.grouping.gradient_statistics import GradientStatistics
from model.grouping.grouping import Grouping
from model.grouping.head_sampling import HeadSample, HeadSampler
from model.grouping.pruning import harden, prune
from model.heads.layout import Head, used_branches
from trainer.config.config import Config

_REFRESH = 10  # steps for which the choice of heads follows the same distributions


def hard_heads(logits: Tensor, alive: Tensor) -> list[Head]:
    """The most probable live head (task, branch) of every task, from tensors [N,K]."""
    hard = harden(logits.masked_fill(~alive, -torch.inf).softmax(dim=1), alive)
    return [(task, branch) for task, branch in hard.nonzero().tolist()]


class GroupLearner(ABC):
    """The logits [N,K] and their updates, outside the engine and in fp32 on every rank.

    Args:
        grouping: The Categoricals and which heads are alive.
        num_steps: Steps of the run, of which `pruning` gives shares.
        rank: Of this process.

    Attributes:
        grouping: See the argument.
        start_step: From this many steps on, heads may be switched off.
        finish_step: From this many steps on, every task has one head.
        finished: Whether every task has one head.
        updates: Updates of the logits so far.
    """

    def __init__(
        self, grouping: Grouping, config: Config, num_steps: int, device: torch.device, rank: int
    ) -> None:
        self.grouping = grouping.to(device)
        self.updates = 0
        self._config = config
        self._rank = rank
        self._device = device
        self.start_step = round(config.pruning.start * num_steps)
        self.finish_step = round(config.pruning.finish * num_steps)
        self._switch(self.grouping.alive)
        size = config.grouping.sampled_heads
        self._sampler = None
        if size is not None and size < self._most_live:
            self._sampler = HeadSampler(size, config.run.seed, self.grouping.alive, device)

    @abstractmethod
    def temperature(self, step: int) -> float:
        """The temperature of the distributions in `step`."""

    @abstractmethod
    def weights(self, step: int, num_samples: int) -> Tensor:
        """The weights z of the heads in `step`, [N,K] or for every sample [N,K,S]."""

    def sample_heads(self, step: int) -> HeadSample | None:
        """The heads that `step` computes, the same on every rank; None where it is all of them."""
        if self._sampler is None or self._most_live <= self._sampler.size:
            return None
        if step % _REFRESH == 0:
            self._refresh()
        return self._sampler.sample_heads(step)

    def _refresh(self) -> None:
        if self._sampler is not None:
            self._sampler.refresh(self.grouping.probabilities(), self.grouping.alive)

    @abstractmethod
    def update(
        self,
        step: int,
        gradient: Tensor,
        losses: Tensor,
        factor: float,
        head_sample: HeadSample | None = None,
    ) -> None:
        """Learn from a step; the same on every rank.

        Args:
            gradient: Of the objective in the logits, summed over ranks [N,K].
            losses: Of all heads over the global batch [N,K]; NaN for a task without labels and for
                a head that was not computed.
            factor: Of the learning rate in this step.
            head_sample: From `sample_heads`, of this step.
        """

    def watch(self, losses: Tensor, head_sample: HeadSample) -> None:
        """Remember the losses of a step for the estimates of the next; see `update`."""
        if self._sampler is not None:
            self._sampler.record(losses, head_sample)

    def leave_out(self, step: int) -> None:  # noqa: ARG002 - for those that count steps
        """Note, in place of `update`, that nothing can be learned from a step."""
        return

    def collects(self, step: int) -> bool:  # noqa: ARG002 - of those that do
        """Whether `collect` wants the network's statistics in `step`."""
        return False

    def collect(self, statistics: GradientStatistics, tasks: Tensor) -> None:
        """Take the statistics of a step, summed over ranks, and the task of every residual."""
        raise NotImplementedError

    def prunes_at(self, step: int) -> bool:
        """Whether heads may be switched off after `step` steps."""
        due = step >= self.start_step and step % self._config.pruning.every == 0
        return not self.finished and (due or step >= self.finish_step)

    def prune(self, step: int) -> list[Head]:
        """Decide, after `step` steps, which heads are switched off for good.

        Returns:
            The heads (task, branch) that were switched off now.
        """
        if not self.prunes_at(step):
            return []
        alive, kept = self.grouping.alive, self._kept(step)
        off = [(task, branch) for task, branch in (alive & ~kept).nonzero().tolist()]
        self._switch(kept)
        self._refresh()
        return off

    def _kept(self, step: int) -> Tensor:
        probabilities, alive = self.grouping.probabilities(), self.grouping.alive
        if step >= self.finish_step:
            return harden(probabilities, alive)
        return prune(probabilities, alive, self._config.pruning.threshold)

    def _switch(self, alive: Tensor) -> None:
        self.grouping.alive = alive
        # Known on the host, so that no step has to ask the device.
        self.finished = int(alive.sum()) == len(alive)
        self._most_live = int(alive.sum(dim=1).max())

    def chosen_heads(self) -> list[Head]:
        """The most probable live head of every task."""
        return hard_heads(self.grouping.probabilities().log(), self.grouping.alive)

    def drop_empty_branches(self) -> tuple[int, ...]:
        """Cut the branches without a live head out of all tensors.

        Returns:
            The branches that were kept, by their old numbers.
        """
        kept = used_branches(self.grouping.heads())
        cut = {name: value[:, list(kept)] for name, value in self.tensors().items()}
        self.load(cut, self.updates)
        return kept

    def tensors(self) -> dict[str, Tensor]:
        """Logits and mask [N,K], and what else a checkpoint must hold, with `updates`."""
        sampled = {} if self._sampler is None else self._sampler.tensors()
        return {"logits": self.grouping.logits.detach(), "alive": self.grouping.alive, **sampled}

    def load(self, tensors: dict[str, Tensor], updates: int) -> None:
        """The inverse of `tensors` and `updates`, with as many branches as the tensors have."""
        self.updates = updates
        num_tasks, num_branches = tensors["logits"].shape
        grouping = Grouping(num_tasks, num_branches, sampler=self.grouping.sampler)
        self.grouping = grouping.to(self._device)
        self._switch(tensors["alive"].to(self._device))
        with torch.no_grad():
            self.grouping.logits.copy_(tensors["logits"])
        if self._sampler is not None:
            self._sampler.load(tensors)
