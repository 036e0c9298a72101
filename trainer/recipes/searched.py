"""The base of recipes that search for the groups in a run of its own, before the training.

Legend: N tasks.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

import numpy as np

from data_pipelines.reading.collate import Batch
from trainer.config.config import Config
from trainer.config.grouping import GroupingSection
from trainer.config.section import PositiveInt
from trainer.recipes.given import GivenGroups
from trainer.recipes.groups import Groups, read_groups
from trainer.recipes.observed_run import ObservedRun


class SearchSection(GroupingSection):
    """The keys of all recipes that search first."""

    search_every: PositiveInt = 10
    """Steps from one observation of the tasks to the next."""
    search_steps: PositiveInt | None = None
    """Length of the search in steps; null takes that of the run."""


class SearchedGroups(GivenGroups):
    """Groups that a search has written to `run.out`.

    The search trains one network of all tasks; `trainer.search` runs it.
    """

    section: ClassVar[type[GroupingSection]] = SearchSection
    searches: ClassVar[bool] = True

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

    @classmethod
    def groups(cls, config: Config, tasks: Sequence[str]) -> Groups:
        """Read the groups that the search has written.

        Raises:
            UserError: There was no search, or its file is damaged or not of these tasks.
        """
        return read_groups(groups_file(config), tasks)


def search_folder(config: Config) -> Path:
    """Return the folder of the run that searches."""
    return config.run.out / "search"


def groups_file(config: Config) -> Path:
    """Return the file of the groups that the search writes."""
    return search_folder(config) / "groups.json"
