"""The recipe `hoa`: groups by the losses of trained pairs (Standley et al. 2020, arXiv 1905.07553).

In the paper's higher-order approximation a network is trained for every pair of tasks and for every
single task, and the loss of a task in a larger group is predicted as the mean of its losses in the
pairs of this group. As in the paper the losses are those of held-out samples. Tasks of different
losses are made comparable by their gain: the fraction by which a loss is below that of the task's
own network. There groups may overlap; here every task is in one.

Legend: N tasks.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import numpy as np

from dmtg.plugins import register_recipe
from trainer.config.config import Config
from trainer.config.grouping import GroupingSection
from trainer.config.section import PositiveInt
from trainer.errors import UserError
from trainer.recipes.cover import best_cover
from trainer.recipes.groups import Groups
from trainer.recipes.searched import SearchedGroups

MAX_TASKS = 40  # the cost is that of N(N-1)/2 + N networks
SHARE = 0.2  # of the run that a pair is trained for, as in the paper's early stopping
ALONE = 0.0  # gain of a task that is a group of its own, over its own network


class HoaSection(GroupingSection):
    """The keys of the recipe `hoa`."""

    search_steps: PositiveInt | None = None
    """Length in steps of each of the runs that train all pairs; null takes a fifth of the run's."""
    search_split: str | None = None
    """Split on which the losses of the pairs are compared; null takes `data.eval_split`."""


@register_recipe("hoa")
class HoaGroups(SearchedGroups):
    """The groups of the highest gain that trained pairs of tasks predict."""

    section: ClassVar[type[GroupingSection]] = HoaSection


def pair_rounds(num_tasks: int) -> list[Groups]:
    """Return groups for as few runs as train every pair and every single task once.

    They are the rounds of a tournament, in which every task meets each other task once, and is
    alone once if their number is odd; if it is even, a last run has a group for each task.
    """
    places = num_tasks + num_tasks % 2  # of an odd number, one task pauses in each round
    circle, rounds = list(range(places)), []
    for _ in range(places - 1):
        pairs = zip(circle, reversed(circle), strict=True)
        groups = [tuple(sorted(t for t in pair if t < num_tasks)) for pair in pairs]
        rounds.append(tuple(sorted(groups[: places // 2])))
        circle[1:] = circle[-1:] + circle[1:-1]
    if num_tasks % 2 == 0:
        rounds.append(tuple((task,) for task in range(num_tasks)))
    return rounds


def pair_losses(rounds: Sequence[Groups], losses: Sequence[np.ndarray]) -> np.ndarray:
    """Return the losses [N,N] of the column's task trained with the row's; alone on the diagonal.

    Args:
        rounds: Of `pair_rounds`.
        losses: Of the tasks in each of them [N]; NaN for those without labels.
    """
    matrix = np.full((len(losses[0]),) * 2, np.nan)
    for groups, of_tasks in zip(rounds, losses, strict=True):
        for group in groups:
            for task in group:
                other = next((each for each in group if each != task), task)
                matrix[other, task] = of_tasks[task]
    return matrix


def pair_gains(losses: np.ndarray) -> np.ndarray:
    """Return the gains [N,N] of losses [N,N]: by what fraction they are below the diagonal.

    A gain that is not known is 0.
    """
    alone = losses.diagonal()
    size = np.where(alone == 0.0, np.nan, np.abs(alone))
    return np.nan_to_num((alone - losses) / size, posinf=0.0, neginf=0.0)


def predicted_gains(gains: np.ndarray, group: Sequence[int]) -> np.ndarray:
    """Return the predicted gain of every task of a group: the mean of those in its pairs.

    Args:
        gains: Of pairs [N,N], of the column's task trained with the row's.
        group: Different tasks.
    """
    if len(group) == 1:
        return np.full(1, ALONE)
    inner = gains[np.ix_(group, group)]
    return (inner.sum(axis=0) - inner.diagonal()) / (len(group) - 1)


def best_groups(gains: np.ndarray, max_groups: int) -> Groups:
    """Return the partition with the highest sum of the tasks' predicted gains, see `best_cover`."""
    return best_cover(gains, max_groups, ALONE)


def check_size(config: Config, num_tasks: int) -> None:
    """Refuse more tasks than pairs can be trained of.

    Raises:
        UserError: There are more than `MAX_TASKS`.
    """
    if num_tasks > MAX_TASKS:
        pairs = num_tasks * (num_tasks - 1) // 2
        raise UserError(
            f"grouping.recipe: {config.grouping.recipe!r} trains a network for each of {pairs} "
            f"pairs of {num_tasks} tasks; allowed: at most {MAX_TASKS} tasks (affinity, tag and "
            "grad_tag take more)"
        )
