"""The recipe `random`: every task on a random branch."""

from __future__ import annotations

from collections.abc import Sequence

from dmtg.plugins import register_recipe
from trainer.config.config import Config
from trainer.recipes.given import GivenGroups
from trainer.recipes.groups import Groups, random_groups


@register_recipe("random")
class RandomGroups(GivenGroups):
    """Random groups, a function of `run.seed`."""

    @classmethod
    def groups(cls, config: Config, tasks: Sequence[str]) -> Groups:
        """Draw a branch for every task."""
        return random_groups(len(tasks), config.model.branches, config.run.seed)
