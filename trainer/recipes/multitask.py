"""The recipe `multitask`: one branch for all tasks."""

from __future__ import annotations

from collections.abc import Sequence

from typing_extensions import override

from dmtg.plugins import register_recipe
from trainer.config.config import Config
from trainer.recipes.given import GivenGroups
from trainer.recipes.groups import Groups


@register_recipe("multitask")
class Multitask(GivenGroups):
    """One group of all tasks, whatever `model.branches` is."""

    @classmethod
    @override
    def groups(cls, config: Config, tasks: Sequence[str]) -> Groups:
        return (tuple(range(len(tasks))),)
