"""The bases of recipes that search for the groups in runs of their own, before the training.

Legend: N tasks.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from data_pipelines.reading.collate import Batch
from trainer.config.config import Config
from trainer.config.grouping import GroupingSection
from trainer.config.section import PositiveInt
from trainer.json_file import with_digits, write_json
from trainer.recipes.given import GivenGroups
from trainer.recipes.groups import Groups, read_groups
from trainer.recipes.observed_run import ObservedRun

_DIGITS = 6  # of affinities in the file


class SearchSection(GroupingSection):
    """The keys of all recipes that observe one network of all tasks first."""

    search_every: PositiveInt = 10
    """Steps from one observation of the tasks to the next."""
    search_steps: PositiveInt | None = None
    """Length of the search in steps; null takes that of the run."""


class SearchedGroups(GivenGroups):
    """Groups that a search has written to `run.out`; `trainer.search` runs it."""

    searches: ClassVar[bool] = True

    @classmethod
    def groups(cls, config: Config, tasks: Sequence[str]) -> Groups:
        """Read the groups that the search has written.

        Raises:
            UserError: There was no search, or its file is damaged or not of these tasks.
        """
        return read_groups(groups_file(config), tasks)


class ObservedGroups(SearchedGroups):
    """Groups by what one network of all tasks shows while it is trained."""

    section: ClassVar[type[GroupingSection]] = SearchSection

    @staticmethod
    @abstractmethod
    def observe(section: SearchSection, run: ObservedRun, micro_batches: list[Batch]) -> None:
        """Observe the tasks before a step, and gather the result in `run.observed`.

        Args:
            section: The recipe's section, from the configuration of the training.
            run: The search.
            micro_batches: Of this rank, on its device.
        """

    @staticmethod
    @abstractmethod
    def partition(affinity: np.ndarray, max_groups: int) -> Groups:
        """Return the groups of the tasks from their mean affinity [N,N]."""


def search_folder(config: Config) -> Path:
    """Return the folder of the search."""
    return config.run.out / "search"


def groups_file(config: Config) -> Path:
    """Return the file of the groups that the search writes."""
    return search_folder(config) / "groups.json"


def write_searched(
    config: Config,
    groups: Groups,
    affinity: np.ndarray,
    names: Sequence[str],
    **more: Any,  # noqa: ANN401 - anything that JSON can hold
) -> None:
    """Write the groups that a search has found, and why.

    Args:
        config: Of the training.
        groups: Of the tasks.
        affinity: [N,N], of the row's task onto the column's.
        names: Of the tasks.
        more: What else the file has; floats are rounded.
    """
    content = {
        "groups": [[names[task] for task in group] for group in groups],
        "tasks": list(names),
        "affinity": affinity.tolist(),
        **more,
    }
    write_json(groups_file(config), with_digits(content, _DIGITS))
