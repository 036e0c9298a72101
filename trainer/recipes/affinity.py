"""The recipe `affinity`: groups from affinities of the tasks, then from their losses.

1. Warm-up: every task trains on every branch, and the gradient statistics of all heads are summed.
2. Tasks of high affinity start on the same branch; branches beyond the number of groups go.
3. The Categorical is the posterior softmax(-loss / (mean loss * temperature)) of the losses that a
   task has on the branches, averaged over steps; the temperature falls to zero at `pruning.end`,
   and heads are switched off on the way.

Legend: N tasks, K branches.
"""

from __future__ import annotations

import logging
from typing import Annotated, ClassVar

import torch
from pydantic import Field
from torch import Tensor

from dmtg.plugins import register_recipe
from model.grouping.affinity import group_tasks, task_affinity
from model.grouping.gradient_statistics import GradientStatistics
from model.grouping.group_start import GroupStart
from model.grouping.grouping import Grouping
from model.grouping.head_sampling import running_mean
from trainer.config.config import Config
from trainer.config.grouping import GroupingSection
from trainer.config.section import PositiveFloat
from trainer.recipes.learner import LearnerInput
from trainer.recipes.warmup import WarmupLearner, WarmupSection

logger = logging.getLogger(__name__)

_LOWEST_TEMPERATURE = 1e-3


class AffinitySection(WarmupSection):
    """The keys of the recipe `affinity`."""

    initial_probability: Annotated[float, Field(gt=0.0, lt=1.0)] = 0.75
    """Probability of a task on the branch of its group after the warm-up."""
    loss_decay: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.98
    """Weight of the past in the averaged losses."""
    temperature: PositiveFloat = 0.1
    """Temperature of the posterior when the warm-up ends, relative to a task's mean loss."""


@register_recipe("affinity")
class AffinityGroups(WarmupLearner):
    """Logits set from affinities first and from averaged losses afterwards, without sampling."""

    section: ClassVar[type[GroupingSection]] = AffinitySection
    held_fraction: ClassVar[float] = 0.1

    def __init__(
        self, grouping: Grouping, config: Config, num_steps: int, device: torch.device, rank: int
    ) -> None:
        super().__init__(grouping, config, num_steps, device, rank)
        assert isinstance(config.grouping, AffinitySection), "the recipe has this section"
        self._section = config.grouping
        self.start_step = max(self.start_step, self._held_until)
        self._average = torch.full_like(self.grouping.logits.detach(), torch.nan)

    def temperature(self, step: int) -> float:
        """Return the posterior's temperature in `step`, relative to a task's mean loss."""
        length = max(1, self.finish_step - self.warmup_end)
        left = 1 - min(1.0, max(0.0, (step - self.warmup_end) / length))
        return self._section.temperature * left**2 + _LOWEST_TEMPERATURE

    def collect(self, statistics: GradientStatistics, tasks: Tensor) -> None:
        """Add the statistics of a step, summed over ranks."""
        self._tasks = tasks
        if self._statistics:
            statistics = {
                name: self._statistics[name] + value for name, value in statistics.items()
            }
        self._statistics = statistics

    def update(self, inputs: LearnerInput) -> None:
        """Average the losses; set the logits from the affinities once, then from the losses."""
        done = inputs.step + 1
        if self.finished or done < self.warmup_end:
            return
        if done == self.warmup_end:
            self._start_groups()
            return
        self._average = running_mean(
            self._average, inputs.losses, self._section.loss_decay, inputs.head_sample.gap
        )
        self.updates += 1
        if done > self._held_until:
            self._set_logits(self._posterior(done))

    def _posterior(self, step: int) -> Tensor:
        seen = self.grouping.alive & ~self._average.isnan()
        count = seen.sum(dim=1, keepdim=True)
        mean = torch.where(seen, self._average, 0.0).sum(dim=1, keepdim=True) / count.clamp_min(1)
        # A head without a loss so far gets the mean of the task's other heads.
        losses = torch.where(seen, self._average, mean)
        scaled = -losses / (mean.clamp_min(1e-12) * self.temperature(step))
        # A task that never had a label keeps its logits.
        return torch.where(count > 0, scaled, self.grouping.logits)

    def _start_groups(self) -> None:
        from accelerate.utils import broadcast_object_list

        num_tasks, num_branches = self.grouping.logits.shape
        affinity = task_affinity(self._collected_statistics(), self._tasks, num_tasks)
        decided = [group_tasks(affinity, num_branches, estimate=self._estimates)]
        # Broadcast rank 0's labels: eigenvectors are not bitwise portable.
        groups = broadcast_object_list(decided)[0]
        self._group_start = GroupStart(groups, affinity)
        logger.info("affinities: %d groups on %d branches", max(groups) + 1, num_branches)
        logits = self._logits_of_start(
            torch.tensor(groups, device=self._device), self._section.initial_probability
        )
        self._set_logits(logits)
        self._statistics = {}

    def _kept(self, step: int) -> Tensor:
        if step == self.warmup_end < self.finish_step:
            return self.grouping.alive & (self.grouping.probabilities() > 0)
        return super()._kept(step)

    def tensors(self) -> dict[str, Tensor]:
        """Return logits, mask and averaged losses [N,K], and in the warm-up the statistics."""
        return {**super().tensors(), "average": self._average}

    def load(self, tensors: dict[str, Tensor], updates: int) -> None:
        """Restore `tensors`."""
        super().load(tensors, updates)
        self._average = tensors["average"].to(self._device)
