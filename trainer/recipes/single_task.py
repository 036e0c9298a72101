"""The recipe `single_task`: a branch for each task."""

from __future__ import annotations

from collections.abc import Sequence

from typing_extensions import override

from dmtg.plugins import register_recipe
from trainer.config.config import Config
from trainer.recipes.given import GivenGroups
from trainer.recipes.groups import Groups


@register_recipe("single_task")
class SingleTask(GivenGroups):
    """Groups of one task each, whatever `model.branches` is."""

    @classmethod
    @override
    def groups(cls, config: Config, tasks: Sequence[str]) -> Groups:
        return tuple((task,) for task in range(len(tasks)))
