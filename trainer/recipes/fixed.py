"""The recipe `fixed`: groups that are given."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, ClassVar

from pydantic import BeforeValidator
from pydantic_core import PydanticCustomError

from dmtg.plugins import register_recipe
from trainer.config.allowed import Words
from trainer.config.config import Config
from trainer.config.grouping import GroupingSection
from trainer.recipes.given import GivenGroups
from trainer.recipes.groups import Groups, groups_of_names, read_groups


def _path_or_groups(value: Any) -> Any:  # noqa: ANN401 - whatever the file holds
    """Return a path or lists of texts as they are; one error for all else."""
    if isinstance(value, (list, tuple)):
        groups = [group if isinstance(group, (list, tuple)) else [None] for group in value]
        if all(isinstance(name, str) for group in groups for name in group):
            return value
    elif isinstance(value, (str, Path)):
        return Path(value)
    raise PydanticCustomError("groups", "no path and no groups")


class FixedSection(GroupingSection):
    """The keys of the recipe `fixed`."""

    groups: Annotated[
        Path | tuple[tuple[str, ...], ...],
        BeforeValidator(_path_or_groups),
        Words("a path or a list of groups, such as [[task1, task3], [task2]]"),
    ]
    """The folder of a run, its `result.json`, another JSON file with
    `{"groups": [["task", ...], ...]}`, an exported model, or the groups themselves."""


@register_recipe("fixed")
class FixedGroups(GivenGroups):
    """Groups from a file, a run or the configuration."""

    section: ClassVar[type[GroupingSection]] = FixedSection

    @classmethod
    def groups(cls, config: Config, tasks: Sequence[str]) -> Groups:
        """Return the groups that `grouping.groups` names or holds.

        Raises:
            UserError: The file is missing or damaged, the run has no groups yet, or they are not of
                these tasks.
        """
        section = config.grouping
        assert isinstance(section, FixedSection), "the recipe has this section"
        if isinstance(section.groups, Path):
            return read_groups(section.groups, tasks)
        return groups_of_names(section.groups, tasks, "the configuration")
