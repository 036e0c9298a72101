"""The recipe `evidence`: groups from the tasks' gradients, and moves on significant differences.

1. Warm-up: every task trains on every branch, and the gradient statistics of all heads are summed.
2. Tasks of high affinity form a group, and tasks whose group is not firm, that is another one when
   the steps are resampled, make the sizes of the groups equal. Every group starts on one branch;
   branches beyond the number of groups go.
3. The Categorical is a posterior. Its prior is the start. Its likelihood comes from the differences
   between the losses of a task's heads on the same batches. Tasks move from half of the time to
   `pruning.end` on: by then the branches differ by their groups rather than by their first weights.
   Heads that have become unlikely are switched off on the way, those of tasks whose groups are
   firm before that.

Legend: N tasks, K branches, C chunks of the warm-up.
"""

from __future__ import annotations

import logging
from typing import Annotated, Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor
from typing_extensions import override

from dmtg.plugins import register_recipe
from model.grouping.gradient_statistics import GradientStatistics
from model.grouping.group_start import FIRM_TASK, branches_of_groups, find_groups
from model.grouping.grouping import Grouping
from model.grouping.paired_losses import PairedLosses
from model.grouping.pruning import harden
from trainer.config.config import Config
from trainer.config.grouping import GroupingSection
from trainer.recipes.learner import LearnerInput
from trainer.recipes.warmup import WarmupLearner, WarmupSection

logger = logging.getLogger(__name__)

_CHUNKS = 8  # of the collected steps, which the bootstrap resamples


class EvidenceSection(WarmupSection):
    """The keys of the recipe `evidence`."""

    initial_probability: Annotated[float, Field(gt=0.0, lt=1.0)] = 0.97
    """Prior probability of a task on the branch of its group."""


@register_recipe("evidence")
class EvidenceGroups(WarmupLearner):
    """Logits set from affinities first and from paired losses afterwards, without sampling."""

    section: ClassVar[type[GroupingSection]] = EvidenceSection
    held_fraction: ClassVar[float] = 0.5

    def __init__(
        self, grouping: Grouping, config: Config, num_steps: int, device: torch.device, rank: int
    ) -> None:
        super().__init__(grouping, config, num_steps, device, rank)
        assert isinstance(config.grouping, EvidenceSection), "the recipe has this section"
        self._section = config.grouping
        self.start_step = max(self.start_step, self.warmup_end)
        self._collected = 0
        self._prior = torch.zeros_like(self.grouping.logits.detach())

    @override
    def temperature(self, step: int) -> float:
        return 1.0

    def collect(self, statistics: GradientStatistics, tasks: Tensor) -> None:
        """Add the statistics of a step, summed over ranks, to one of C chunks [C,...]."""
        self._tasks = tasks
        if not self._statistics:
            self._statistics = {
                name: value.new_zeros(_CHUNKS, *value.shape) for name, value in statistics.items()
            }
        for name, value in statistics.items():
            self._statistics[name][self._collected % _CHUNKS] += value
        self._collected += 1

    def update(self, inputs: LearnerInput) -> None:
        """Set the logits from the affinities once, then from the paired losses."""
        done = inputs.step + 1
        if self.finished or done < self.warmup_end:
            return
        if done == self.warmup_end:
            self._start_groups()
            return
        self.updates += 1
        if done > self._held_until:
            self._set_logits(self._posterior())

    def _posterior(self) -> Tensor:
        """Return the log of prior times likelihood, up to a constant for each task [N,K].

        That branch k is better than the present one has the likelihood ratio of a normal
        distribution, exp(z^2 / 2), where z is the mean difference in standard errors.
        """
        logits = self.grouping.logits.detach().masked_fill(~self.grouping.alive, -torch.inf)
        paired = self.paired_losses
        compare = paired.compare if self._sampler is None else paired.compare_through_others
        mean, error = compare(logits.argmax(dim=1))
        worse = torch.where(error > 0, mean / error.clamp_min(1e-30), 0.0)
        return self._prior - worse * worse.abs() / 2

    def _start_groups(self) -> None:
        from accelerate.utils import broadcast_object_list

        shape = self.grouping.logits.shape
        statistics = self._collected_statistics()
        decided: list[Any] = [None, None]
        if self._rank == 0:  # the others take its result: eigenvectors are not bitwise portable
            start = find_groups(statistics, self._tasks, *shape, estimate=self._estimates)
            decided = [start, branches_of_groups(start.balanced, self.paired_losses.losses())]
        found, labels = broadcast_object_list(decided)
        self._group_start = found
        self.firmness = torch.tensor([*found.firmness, found.agreement])
        text = "affinities: %d groups on %d branches, agreement with resampled steps %.2f"
        logger.info(text, len(set(labels)), shape[1], found.agreement)
        branches = torch.tensor(labels, device=self._device)
        self._set_logits(self._logits_of_start(branches, self._section.initial_probability))
        self._prior = self.grouping.logits.detach().clone()
        self.paired_losses = PairedLosses(shape[0], shape[1], self._device)
        self._statistics, self._collected = {}, 0

    def _kept(self, step: int) -> Tensor:
        alive, probabilities = self.grouping.alive, self.grouping.probabilities()
        if step >= self.finish_step:
            return super()._kept(step)
        prior = self._prior.masked_fill(~alive, -torch.inf).softmax(dim=1)
        if step <= self.warmup_end:
            return alive & (prior > 0)
        posterior = self._posterior().masked_fill(~alive, -torch.inf).softmax(dim=1)
        # The prior alone switches nothing off.
        unlikely = posterior < self._config.pruning.threshold * prior
        if step <= self._held_until and self.firmness is not None:
            unlikely &= (self.firmness[:-1, None] >= FIRM_TASK).to(unlikely.device)
        return (alive & ~unlikely) | harden(probabilities, alive)

    def tensors(self) -> dict[str, Tensor]:
        """Return logits, mask and prior [N,K], and in the warm-up the statistics [C,...]."""
        tensors = {**super().tensors(), "prior": self._prior}
        if self._statistics:
            tensors["collected_steps"] = torch.tensor(self._collected)
        return tensors

    def load(self, tensors: dict[str, Tensor], updates: int) -> None:
        """Restore `tensors`."""
        super().load(tensors, updates)
        self._prior = tensors["prior"].to(self._device)
        self._collected = int(tensors.get("collected_steps", 0))
