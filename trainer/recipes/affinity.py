"""The default recipe: groups from the tasks' affinities, then from their losses on each branch.

1. Warm-up: every task trains on every branch, and what each task asks of the branches is summed up.
2. Tasks with alike demands start on one branch; branches beyond the number of groups found go.
3. The Categorical is the posterior softmax(-loss / (mean loss * temperature)) of the losses that a
   task has on the branches, averaged over steps; the temperature falls to zero at
   `pruning.finish`, heads are switched off on the way.

Legend: N tasks, K branches.
"""

from __future__ import annotations

import logging
import math

import torch
from accelerate.utils import broadcast_object_list
from torch import Tensor

from model.grouping.affinity import group_tasks, task_affinity
from model.grouping.gradient_statistics import GradientStatistics
from model.grouping.grouping import Grouping
from model.grouping.head_sampling import HeadSample, running_mean
from trainer.config.config import Config
from trainer.recipes.learner import GroupLearner

logger = logging.getLogger(__name__)

_IGNORED_SHARE = 0.25  # of the warm-up, in which the features change fastest
_MAX_COLLECTED_STEPS = (
    200  # steps whose statistics are summed: enough, and at most a small share of the run
)
_HELD_SHARE = 0.1  # of the time from warm-up to finish, in which tasks stay where they start
_COLDEST = 1e-3


class AffinityGroups(GroupLearner):
    """Logits set from affinities first and from averaged losses then, with no sampling.

    Attributes:
        warmup_end: Steps of the warm-up.
    """

    def __init__(
        self, grouping: Grouping, config: Config, num_steps: int, device: torch.device, rank: int
    ) -> None:
        super().__init__(grouping, config, num_steps, device, rank)
        self._section = config.grouping.affinity
        self.warmup_end = max(1, round(self._section.warmup * num_steps))
        self.finish_step = min(max(self.finish_step, self.warmup_end + 1), num_steps)
        self._held_until = self.warmup_end + round(
            _HELD_SHARE * (self.finish_step - self.warmup_end)
        )
        self.start_step = max(self.start_step, self._held_until)
        self._first_collected = int(_IGNORED_SHARE * self.warmup_end)
        self._collect_every = -(-(self.warmup_end - self._first_collected) // _MAX_COLLECTED_STEPS)
        self._statistics: GradientStatistics = {}
        self._tasks = torch.empty(0, dtype=torch.long)
        self._average = torch.full_like(self.grouping.logits.detach(), torch.nan)
        with torch.no_grad():
            self.grouping.logits.zero_()

    def temperature(self, step: int) -> float:
        """The posterior's temperature in `step`, relative to a task's mean loss."""
        length = max(1, self.finish_step - self.warmup_end)
        left = 1 - min(1.0, max(0.0, (step - self.warmup_end) / length))
        return self._section.temperature * left**2 + _COLDEST

    def weights(self, step: int, num_samples: int) -> Tensor:  # noqa: ARG002
        """The probabilities of the live heads."""
        return self.grouping.probabilities()

    def collects(self, step: int) -> bool:
        """Whether the network's statistics are wanted in `step`."""
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

    def update(
        self,
        step: int,
        gradient: Tensor,  # noqa: ARG002
        losses: Tensor,
        factor: float,  # noqa: ARG002
        head_sample: HeadSample | None = None,
    ) -> None:
        """Average the losses; set the logits from the affinities once and from the losses then."""
        done = step + 1
        if self.finished or done < self.warmup_end:
            return
        if done == self.warmup_end:
            self._start_groups()
            return
        gap = 1.0 if head_sample is None else head_sample.gap
        self._average = running_mean(self._average, losses, self._section.average, gap)
        self.updates += 1
        if done > self._held_until:
            self._set_logits(self._posterior(done))

    def leave_out(self, step: int) -> None:
        """Set the logits from the affinities even if the step in which that is due was bad."""
        if not self.finished and step + 1 == self.warmup_end:
            self._start_groups()

    def _posterior(self, step: int) -> Tensor:
        seen = self.grouping.alive & ~self._average.isnan()
        count = seen.sum(dim=1, keepdim=True).clamp_min(1)
        mean = torch.where(seen, self._average, 0.0).sum(dim=1, keepdim=True) / count
        # A head without a loss so far is as good as its task's others.
        losses = torch.where(seen, self._average, mean)
        scaled = -losses / (mean.clamp_min(1e-12) * self.temperature(step))
        # A task that never had a label keeps its start.
        return torch.where(mean > 0, scaled, self.grouping.logits)

    def _set_logits(self, logits: Tensor) -> None:
        with torch.no_grad():
            # The best is zero, so that no logit overflows as the temperature falls.
            best = logits.masked_fill(~self.grouping.alive, -torch.inf).amax(dim=1, keepdim=True)
            self.grouping.logits.copy_((logits - best).clamp_min(-1e4))

    def _start_groups(self) -> None:
        num_tasks, num_branches = self.grouping.logits.shape
        affinity = task_affinity(self._statistics, self._tasks, num_tasks)
        decided = [
            group_tasks(affinity, num_branches, estimate=self._section.branches == "estimate")
        ]
        # Rank 0's word counts: eigenvectors may differ in the last bit from machine to machine.
        labels = torch.tensor(broadcast_object_list(decided)[0], device=self._device)
        num_groups = int(labels.max()) + 1
        logger.info("affinities: %d groups on %d branches", num_groups, num_branches)
        share = self._section.start_probability
        odds = math.log(share / (1 - share) * max(1, num_groups - 1))
        logits = torch.zeros_like(self._average)
        logits[:, num_groups:] = -1e4
        logits[torch.arange(num_tasks, device=self._device), labels] = odds
        self._set_logits(logits)
        self._statistics = {}

    def prunes_at(self, step: int) -> bool:
        """Whether heads may be switched off; at the end of the warm-up those of no group are."""
        return super().prunes_at(step) or (step == self.warmup_end and not self.finished)

    def _kept(self, step: int) -> Tensor:
        if step == self.warmup_end < self.finish_step:
            return self.grouping.alive & (self.grouping.probabilities() > 0)
        return super()._kept(step)

    def tensors(self) -> dict[str, Tensor]:
        """Logits, mask and averaged losses [N,K]; in the warm-up the statistics so far."""
        collected = {
            f"gradient_statistics.{name}": value for name, value in self._statistics.items()
        }
        if collected:
            collected["residual_tasks"] = self._tasks
        return {**super().tensors(), "average": self._average, **collected}

    def load(self, tensors: dict[str, Tensor], updates: int) -> None:
        """The inverse of `tensors`."""
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
