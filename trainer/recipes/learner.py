"""The base of all recipes: live heads, pruning, sampled heads, and the state of a checkpoint.

Legend: N tasks, K branches, S samples.
"""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from dmtg.plugins import RECIPES
from model.grouping.gradient_statistics import GradientStatistics
from model.grouping.group_start import GroupStart
from model.grouping.grouping import Grouping
from model.grouping.head_sampling import HeadSample, HeadSampler
from model.grouping.paired_losses import PREFIX, PairedLosses
from model.grouping.pruning import harden, prune
from model.heads.layout import Head, used_branches
from trainer.config.config import Config
from trainer.config.grouping import GroupingSection, LearnedGroupingSection

logger = logging.getLogger(__name__)

_REFRESH = 10  # steps for which the choice of heads follows the same distributions


def hard_heads(logits: Tensor, alive: Tensor) -> list[Head]:
    """Return the most probable live head (task, branch) of every task, from tensors [N,K]."""
    hard = harden(logits.masked_fill(~alive, -torch.inf).softmax(dim=1), alive)
    return [(task, branch) for task, branch in hard.nonzero().tolist()]


@dataclass(frozen=True)
class LearnerInput:
    """What a learner gets from a step; the same on every rank.

    Attributes:
        step: Number of the step, from 0.
        logits_gradient: Gradient of the objective in the logits, summed over ranks [N,K].
        losses: Losses of all heads over the global batch [N,K]; NaN for a task without labels and
            for a head that was not computed.
        lr_factor: Multiplier of every learning rate in this step.
        head_sample: The heads that were computed; the null sample for all live heads.
        label_counts: Labels of every task in the global batch [N]; None counts each task once.
    """

    step: int
    logits_gradient: Tensor
    losses: Tensor
    lr_factor: float
    head_sample: HeadSample
    label_counts: Tensor | None = None


class GroupLearner(ABC):
    """A recipe: the logits [N,K] and their updates, outside the engine and in fp32 on every rank.

    A subclass is registered with `dmtg.plugins.register_recipe`.

    Args:
        grouping: The Categoricals and which heads are alive.
        config: Of the run; `config.grouping` is an instance of `section`.
        num_steps: Steps of the run; `pruning.begin` and `pruning.end` are fractions of it.
        device: Device of logits and losses.
        rank: Of this process.

    Attributes:
        section: The keys of the recipe under `grouping`.
        searches: Whether a run of its own finds the groups before the training.
        groups_given: Whether the groups are known before the first step, so that the network has
            the N heads of these groups only.
        collects_gradient_statistics: Whether `collect` needs the network's gradient statistics.
        benchmark_pruning: `pruning.begin` and `pruning.end` of `dmtg bench grouping`; None for the
            defaults.
        grouping: See the argument.
        start_step: From this many steps on, heads may be switched off.
        finish_step: From this many steps on, every task has one head.
        finished: Whether every task has one head.
        updates: Updates of the logits so far.
        paired_losses: How the losses of a task's heads differ on the same batches.
        firmness: How firm each task's group is, see `GroupStart`, and last the agreement of all
            groups with resampled ones [N+1]; None before they are found and in other recipes.
    """

    section: ClassVar[type[GroupingSection]] = GroupingSection
    searches: ClassVar[bool] = False
    groups_given: ClassVar[bool] = False
    collects_gradient_statistics: ClassVar[bool] = False
    benchmark_pruning: ClassVar[tuple[float, float] | None] = None

    def __init__(
        self, grouping: Grouping, config: Config, num_steps: int, device: torch.device, rank: int
    ) -> None:
        self.grouping = grouping.to(device)
        self.updates = 0
        self.firmness: Tensor | None = None
        self._group_start: GroupStart | None = None
        self._config = config
        self._rank = rank
        self._device = device
        self.start_step = round(config.pruning.begin * num_steps)
        self.finish_step = round(config.pruning.end * num_steps)
        num_tasks, num_branches = self.grouping.logits.shape
        self.paired_losses = PairedLosses(num_tasks, num_branches, device)
        self._switch(self.grouping.alive)
        size = sampled_heads(config)
        self._sampler = None
        if size is not None and size < self._most_live:
            self._sampler = HeadSampler(size, config.run.seed, self.grouping.alive, device)

    @classmethod
    def new_grouping(cls, config: Config, num_tasks: int) -> Grouping:
        """Return the Categoricals of all tasks over all branches before the first step."""
        return Grouping(num_tasks, config.model.branches)

    @abstractmethod
    def temperature(self, step: int) -> float:
        """Return the temperature of the distributions in `step`."""

    @abstractmethod
    def weights(self, step: int, num_samples: int) -> Tensor:
        """Return the weights z of the heads in `step`, [N,K] or for every sample [N,K,S]."""

    def sample_heads(self, step: int) -> HeadSample | None:
        """Return the heads that `step` computes, the same on every rank; None if it is all."""
        if self._sampler is None or self._most_live <= self._sampler.size:
            return None
        if step % _REFRESH == 0:
            self._refresh()
        return self._sampler.sample_heads(step)

    def _refresh(self) -> None:
        if self._sampler is not None:
            self._sampler.refresh(self.grouping.probabilities(), self.grouping.alive)

    @abstractmethod
    def update(self, inputs: LearnerInput) -> None:
        """Learn from a step; the same on every rank."""

    def record_losses(self, inputs: LearnerInput) -> None:
        """Record the losses of a step, before `update`.

        They are compared between the heads of a task, and where heads are sampled they are for the
        estimates of the heads that later steps leave out.
        """
        if not self.finished:
            counts = inputs.label_counts
            counts = torch.ones(len(inputs.losses)) if counts is None else counts
            counts = counts.to(inputs.losses)
            self.paired_losses.add(inputs.losses, counts, self.grouping.alive)
        if self._sampler is not None and not inputs.head_sample.complete:
            self._sampler.record(inputs.losses, inputs.head_sample)

    def leave_out(self, step: int) -> None:
        """Note, in place of `update`, that nothing can be learned from `step`."""
        logger.debug("step %d: the groups are not updated", step)

    def collects(self, step: int) -> bool:
        """Return whether `collect` needs the gradient statistics of `step`."""
        return self.collects_gradient_statistics and step < self.finish_step and not self.finished

    def collect(self, statistics: GradientStatistics, tasks: Tensor) -> None:
        """Add the statistics of a step, summed over ranks, with the task of every residual."""
        raise NotImplementedError

    def take_group_start(self) -> GroupStart | None:
        """Return the first groups once after the step that found them, otherwise None."""
        start, self._group_start = self._group_start, None
        return start

    def prunes_at(self, step: int) -> bool:
        """Return whether heads may be switched off after `step` steps."""
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
        # Kept on the host, so that no step synchronises with the device.
        self.finished = int(alive.sum()) == len(alive)
        self._most_live = int(alive.sum(dim=1).max())

    def chosen_heads(self) -> list[Head]:
        """Return the most probable live head of every task."""
        return hard_heads(self.grouping.probabilities().log(), self.grouping.alive)

    def drop_empty_branches(self) -> tuple[int, ...]:
        """Remove the branches without a live head from all tensors.

        Returns:
            The branches that were kept, by their old numbers.
        """
        kept = used_branches(self.grouping.heads())
        self.paired_losses.drop(kept)
        shape = self.grouping.alive.shape
        cut = {
            name: value[:, list(kept)] if value.shape == shape else value
            for name, value in self.tensors().items()
        }
        self.load(cut, self.updates)
        return kept

    def tensors(self) -> dict[str, Tensor]:
        """Return logits and mask [N,K], and what else a checkpoint needs, with `updates`.

        Those of shape [N,K] lose the columns of branches that are dropped.
        """
        sampled = {} if self._sampler is None else self._sampler.tensors()
        paired = {PREFIX + name: value for name, value in self.paired_losses.tensors().items()}
        logits = self.grouping.logits.detach()
        tensors = {"logits": logits, "alive": self.grouping.alive, **sampled, **paired}
        return tensors if self.firmness is None else {**tensors, "firmness": self.firmness}

    def load(self, tensors: dict[str, Tensor], updates: int) -> None:
        """Restore `tensors` and `updates`, with as many branches as the tensors have."""
        self.updates = updates
        num_tasks, num_branches = tensors["logits"].shape
        grouping = Grouping(num_tasks, num_branches, sampler=self.grouping.sampler)
        self.grouping = grouping.to(self._device)
        self._switch(tensors["alive"].to(self._device))
        with torch.no_grad():
            self.grouping.logits.copy_(tensors["logits"])
        if self._sampler is not None:
            self._sampler.load(tensors)
        self.firmness = tensors.get("firmness", self.firmness)
        shape = (num_tasks, num_branches)
        self.paired_losses = PairedLosses.of_checkpoint(tensors, shape, self._device)


def recipe_of(config: Config) -> type[GroupLearner]:
    """Return the recipe of a run."""
    recipe: type[GroupLearner] = RECIPES[config.grouping.recipe]
    return recipe


def sampled_heads(config: Config) -> int | None:
    """Return how many heads of a task a step computes while groups are learned; None for all."""
    section = config.grouping
    return section.sampled_heads if isinstance(section, LearnedGroupingSection) else None
