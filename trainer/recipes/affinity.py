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
import math
from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor
from typing_extensions import override

from dmtg.plugins import register_recipe
from model.grouping.affinity import group_tasks, task_affinity
from model.grouping.gradient_statistics import GradientStatistics
from model.grouping.group_start import GroupStart
from model.grouping.grouping import Grouping
from model.grouping.head_sampling import running_mean
from trainer.config.config import Config
from trainer.config.grouping import GroupingSection, LearnedGroupingSection
from trainer.config.section import PositiveFloat
from trainer.recipes.learner import GroupLearner, LearnerInput

logger = logging.getLogger(__name__)

_IGNORED_FRACTION = 0.25  # of the warm-up, in which the features change fastest
_MAX_COLLECTED_STEPS = 200  # steps whose statistics are summed, a small fraction of a long run
_HELD_FRACTION = 0.1  # of the time from warm-up to finish, in which tasks keep their first branch
_LOWEST_TEMPERATURE = 1e-3


class AffinitySection(LearnedGroupingSection):
    """The keys of the recipe `affinity`."""

    warmup: Annotated[float, Field(gt=0.0, lt=1.0)] = 0.1
    """Fraction of the run in which all tasks train on all branches."""
    num_groups: Literal["estimate", "all"] = "estimate"
    """`all` makes as many groups as there are branches, `estimate` fewer if the affinities suggest
    fewer."""
    initial_probability: Annotated[float, Field(gt=0.0, lt=1.0)] = 0.75
    """Probability of a task on the branch of its group after the warm-up."""
    loss_decay: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.98
    """Weight of the past in the averaged losses."""
    temperature: PositiveFloat = 0.1
    """Temperature of the posterior when the warm-up ends, relative to a task's mean loss."""


@register_recipe("affinity")
class AffinityGroups(GroupLearner):
    """Logits set from affinities first and from averaged losses afterwards, without sampling.

    Attributes:
        warmup_end: Steps of the warm-up.
    """

    section: ClassVar[type[GroupingSection]] = AffinitySection
    collects_gradient_statistics: ClassVar[bool] = True

    def __init__(
        self, grouping: Grouping, config: Config, num_steps: int, device: torch.device, rank: int
    ) -> None:
        super().__init__(grouping, config, num_steps, device, rank)
        assert isinstance(config.grouping, AffinitySection), "the recipe has this section"
        self._section = config.grouping
        self.warmup_end = max(1, round(self._section.warmup * num_steps))
        self.finish_step = min(max(self.finish_step, self.warmup_end + 1), num_steps)
        self._held_until = self.warmup_end + round(
            _HELD_FRACTION * (self.finish_step - self.warmup_end)
        )
        self.start_step = max(self.start_step, self._held_until)
        self._first_collected = int(_IGNORED_FRACTION * self.warmup_end)
        self._collect_every = -(-(self.warmup_end - self._first_collected) // _MAX_COLLECTED_STEPS)
        self._statistics: GradientStatistics = {}
        self._tasks = torch.empty(0, dtype=torch.long)
        self._average = torch.full_like(self.grouping.logits.detach(), torch.nan)
        with torch.no_grad():
            self.grouping.logits.zero_()

    def temperature(self, step: int) -> float:
        """Return the posterior's temperature in `step`, relative to a task's mean loss."""
        length = max(1, self.finish_step - self.warmup_end)
        left = 1 - min(1.0, max(0.0, (step - self.warmup_end) / length))
        return self._section.temperature * left**2 + _LOWEST_TEMPERATURE

    @override
    def weights(self, step: int, num_samples: int) -> Tensor:
        return self.grouping.probabilities()

    def collects(self, step: int) -> bool:
        """Return whether `collect` needs the gradient statistics of `step`."""
        offset = step - self._first_collected
        in_time = 0 <= offset < self.warmup_end - self._first_collected
        return in_time and not self.finished and offset % self._collect_every == 0

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

    def leave_out(self, step: int) -> None:
        """Set the logits from the affinities even if the step in which that is due is left out."""
        if not self.finished and step + 1 == self.warmup_end:
            self._start_groups()

    def _posterior(self, step: int) -> Tensor:
        seen = self.grouping.alive & ~self._average.isnan()
        count = seen.sum(dim=1, keepdim=True)
        mean = torch.where(seen, self._average, 0.0).sum(dim=1, keepdim=True) / count.clamp_min(1)
        # A head without a loss so far gets the mean of the task's other heads.
        losses = torch.where(seen, self._average, mean)
        scaled = -losses / (mean.clamp_min(1e-12) * self.temperature(step))
        # A task that never had a label keeps its logits.
        return torch.where(count > 0, scaled, self.grouping.logits)

    def _set_logits(self, logits: Tensor) -> None:
        with torch.no_grad():
            # The best is zero, so that no logit overflows as the temperature falls.
            best = logits.masked_fill(~self.grouping.alive, -torch.inf).amax(dim=1, keepdim=True)
            self.grouping.logits.copy_((logits - best).clamp_min(-1e4))

    def _start_groups(self) -> None:
        from accelerate.utils import broadcast_object_list

        num_tasks, num_branches = self.grouping.logits.shape
        affinity = task_affinity(self._statistics, self._tasks, num_tasks)
        estimate = self._section.num_groups == "estimate"
        decided = [group_tasks(affinity, num_branches, estimate=estimate)]
        # Broadcast rank 0's labels: eigenvectors are not bitwise portable.
        groups = broadcast_object_list(decided)[0]
        self._group_start = GroupStart(groups, affinity)
        labels = torch.tensor(groups, device=self._device)
        num_groups = int(labels.max()) + 1
        logger.info("affinities: %d groups on %d branches", num_groups, num_branches)
        probability = self._section.initial_probability
        log_odds = math.log(probability / (1 - probability) * max(1, num_groups - 1))
        logits = torch.zeros_like(self._average)
        logits[:, num_groups:] = -1e4
        logits[torch.arange(num_tasks, device=self._device), labels] = log_odds
        self._set_logits(logits)
        self._statistics = {}

    def prunes_at(self, step: int) -> bool:
        """Return whether heads may be switched off; after the warm-up those of no group are."""
        return super().prunes_at(step) or (step == self.warmup_end and not self.finished)

    def _kept(self, step: int) -> Tensor:
        if step == self.warmup_end < self.finish_step:
            return self.grouping.alive & (self.grouping.probabilities() > 0)
        return super()._kept(step)

    def tensors(self) -> dict[str, Tensor]:
        """Return logits, mask and averaged losses [N,K], and in the warm-up the statistics."""
        collected = {
            f"gradient_statistics.{name}": value for name, value in self._statistics.items()
        }
        if collected:
            collected["residual_tasks"] = self._tasks
        return {**super().tensors(), "average": self._average, **collected}

    def load(self, tensors: dict[str, Tensor], updates: int) -> None:
        """Restore `tensors`."""
        super().load(tensors, updates)
        tensors = {name: value.to(self._device) for name, value in tensors.items()}
        self._average = tensors["average"]
        prefix = "gradient_statistics."
        self._statistics = {
            name.removeprefix(prefix): value
            for name, value in tensors.items()
            if name.startswith(prefix)
        }
        self._tasks = tensors.get("residual_tasks", self._tasks)
