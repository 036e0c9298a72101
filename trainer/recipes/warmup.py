"""The base of recipes that group the tasks by the gradients of a warm-up.

Legend: N tasks, K branches.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor
from typing_extensions import override

from model.grouping.gradient_statistics import GradientStatistics
from model.grouping.grouping import Grouping
from trainer.config.config import Config
from trainer.config.grouping import LearnedGroupingSection
from trainer.errors import UserError
from trainer.recipes.learner import GroupLearner

_IGNORED_FRACTION = 0.25  # of the warm-up, in which the features change fastest
_MAX_COLLECTED_STEPS = 200  # steps whose statistics are summed, a small fraction of a long run
_STATISTICS = "gradient_statistics."  # prefix of their tensors


class WarmupSection(LearnedGroupingSection):
    """The keys of recipes with a warm-up."""

    warmup: Annotated[float, Field(gt=0.0, lt=1.0)] = 0.1
    """Fraction of the run in which all tasks train on all branches."""
    num_groups: Literal["estimate", "all"] = "estimate"
    """`all` makes as many groups as there are branches, `estimate` fewer if the affinities suggest
    fewer."""


class WarmupLearner(GroupLearner):
    """Logits that are equal in the warm-up, and set from its gradient statistics at its end.

    Attributes:
        held_fraction: Of the time from the warm-up to the finish, in which tasks keep their branch.
        warmup_end: Steps of the warm-up.
    """

    collects_gradient_statistics: ClassVar[bool] = True
    held_fraction: ClassVar[float]

    def __init__(
        self, grouping: Grouping, config: Config, num_steps: int, device: torch.device, rank: int
    ) -> None:
        super().__init__(grouping, config, num_steps, device, rank)
        assert isinstance(config.grouping, WarmupSection), "the recipe has such a section"
        self._estimates = config.grouping.num_groups == "estimate"
        self.warmup_end = max(1, round(config.grouping.warmup * num_steps))
        self.finish_step = min(max(self.finish_step, self.warmup_end + 1), num_steps)
        self._held_until = self.warmup_end + round(
            self.held_fraction * (self.finish_step - self.warmup_end)
        )
        self._first_collected = int(_IGNORED_FRACTION * self.warmup_end)
        self._collect_every = -(-(self.warmup_end - self._first_collected) // _MAX_COLLECTED_STEPS)
        self._statistics: GradientStatistics = {}
        self._tasks = torch.empty(0, dtype=torch.long)
        with torch.no_grad():
            self.grouping.logits.zero_()

    @override
    def weights(self, step: int, num_samples: int) -> Tensor:
        return self.grouping.probabilities()

    def collects(self, step: int) -> bool:
        """Return whether `collect` needs the gradient statistics of `step`."""
        offset = step - self._first_collected
        in_time = 0 <= offset < self.warmup_end - self._first_collected
        return in_time and not self.finished and offset % self._collect_every == 0

    def leave_out(self, step: int) -> None:
        """Set the logits from the affinities even if the step in which that is due is left out."""
        if not self.finished and step + 1 == self.warmup_end:
            self._start_groups()

    @abstractmethod
    def _start_groups(self) -> None:
        """Set the logits from the statistics, the same on every rank, and delete these."""

    def _collected_statistics(self) -> GradientStatistics:
        if not self._statistics:
            raise UserError(
                "grouping.warmup: every step in which gradients were to be collected was left out "
                "because of losses or gradients that are not finite; lower optim.lr"
            )
        return self._statistics

    def _set_logits(self, logits: Tensor) -> None:
        with torch.no_grad():
            # The best is zero, so that no logit overflows as the distribution sharpens.
            best = logits.masked_fill(~self.grouping.alive, -torch.inf).amax(dim=1, keepdim=True)
            self.grouping.logits.copy_((logits - best).clamp_min(-1e4))

    def _logits_of_start(self, branches: Tensor, probability: float) -> Tensor:
        """Return logits [N,K] that are equal on all branches in use but for the tasks' own.

        Args:
            branches: The branch of every task [N].
            probability: Of a task on its branch.
        """
        used = branches.unique()
        log_odds = math.log(probability / (1 - probability) * max(1, len(used) - 1))
        logits = torch.full_like(self.grouping.logits.detach(), -1e4)
        logits[:, used] = 0.0
        logits[torch.arange(len(branches), device=self._device), branches] = log_odds
        return logits

    def prunes_at(self, step: int) -> bool:
        """Return whether heads may be switched off; after the warm-up those of no group are."""
        return super().prunes_at(step) or (step == self.warmup_end and not self.finished)

    def tensors(self) -> dict[str, Tensor]:
        """Return logits and mask [N,K], and in the warm-up the statistics."""
        collected = {f"{_STATISTICS}{name}": value for name, value in self._statistics.items()}
        if collected:
            collected["residual_tasks"] = self._tasks
        return {**super().tensors(), **collected}

    def load(self, tensors: dict[str, Tensor], updates: int) -> None:
        """Restore `tensors`."""
        super().load(tensors, updates)
        self._statistics = {
            name.removeprefix(_STATISTICS): value.to(self._device)
            for name, value in tensors.items()
            if name.startswith(_STATISTICS)
        }
        self._tasks = tensors.get("residual_tasks", self._tasks).to(self._device)
