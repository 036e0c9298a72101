"""The recipe `fixed`: the groups of a file."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

from dmtg.plugins import register_recipe
from trainer.config.config import Config
from trainer.config.grouping import GroupingSection
from trainer.recipes.given import GivenGroups
from trainer.recipes.groups import Groups, read_groups


class FixedSection(GroupingSection):
    """The keys of the recipe `fixed`."""

    groups: Path
    """A JSON file `{"groups": [["task", ...], ...]}` or an exported model."""


@register_recipe("fixed")
class FixedGroups(GivenGroups):
    """Groups from a file."""

    section: ClassVar[type[GroupingSection]] = FixedSection

    @classmethod
    def groups(cls, config: Config, tasks: Sequence[str]) -> Groups:
        """Read the groups from `grouping.groups`.

        Raises:
            UserError: The file is missing, damaged or not of these tasks.
        """
        section = config.grouping
        assert isinstance(section, FixedSection), "the recipe has this section"
        return read_groups(section.groups, tasks)
