"""The base of recipes whose groups are known before the first step.

Legend: N tasks, K branches.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import ClassVar

from torch import Tensor
from typing_extensions import override

from dmtg.plugins import RECIPES
from trainer.config.config import Config
from trainer.recipes.groups import Groups
from trainer.recipes.learner import GroupLearner, LearnerInput

_TEMPERATURE = 2.5  # without effect; recorded with the losses as for recipes that learn


class GivenGroups(GroupLearner):
    """Every task has one head from the start, and nothing is learned or pruned."""

    groups_given: ClassVar[bool] = True

    @classmethod
    @abstractmethod
    def groups(cls, config: Config, tasks: Sequence[str]) -> Groups:
        """Return the groups of a run.

        Args:
            tasks: Names of the run's tasks.

        Raises:
            UserError: There are no groups of these tasks.
        """

    @override
    def temperature(self, step: int) -> float:
        return _TEMPERATURE

    @override
    def weights(self, step: int, num_samples: int) -> Tensor:
        return self.grouping.alive.float()

    @override
    def update(self, inputs: LearnerInput) -> None:
        return


def given_groups(config: Config, tasks: Sequence[str]) -> Groups | None:
    """Return the groups that the run's recipe gives; None if it learns them.

    Args:
        tasks: Names of the run's tasks.

    Raises:
        UserError: As `GivenGroups.groups`.
    """
    recipe = RECIPES[config.grouping.recipe]
    return recipe.groups(config, tasks) if recipe.groups_given else None
