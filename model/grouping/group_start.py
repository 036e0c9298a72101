"""The groups that a warm-up suggests, and how firm they are.

Legend: N tasks, K branches, C chunks of steps.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from model.grouping.affinity import Affinity
from model.grouping.gradient_statistics import GradientStatistics
from model.grouping.subspaces import TaskGradients, group_tasks

FIRM_TASK = 0.8  # least firmness of a task that keeps the group of its affinities


@dataclass(frozen=True)
class GroupStart:
    """Groups from the affinities of the tasks, beside those that other steps might have given.

    Attributes:
        labels: Group of every task, numbered from 0.
        affinity: Of every pair of tasks [N,N].
        co_assignment: Probability of every pair of tasks to share a group, over resampled steps
            [N,N]; None from a recipe that resamples nothing.
        agreement: Mean adjusted Rand index of the resampled groups and these; else NaN.
    """

    labels: list[int]
    affinity: Affinity
    co_assignment: Affinity | None = None
    agreement: float = math.nan

    @property
    def firmness(self) -> list[float]:
        """How much of a task's group is the same over resampled steps, from 0 to 1, for every task.

        The expected number of tasks that are with it both here and there, itself included, divided
        by that of tasks that are with it here or there (a soft Jaccard index).
        """
        assert self.co_assignment is not None, "the recipe resamples the steps"
        same = np.equal.outer(self.labels, self.labels)
        both = np.where(same, self.co_assignment, 0.0).sum(axis=1)
        either = np.where(same, 1.0, self.co_assignment).sum(axis=1)
        return [float(value) for value in both / either]

    @property
    def balanced(self) -> list[int]:
        """The groups with tasks that are not firm spread over them, for every task.

        Tasks with a firm group stay in it. The others fill the smallest groups, so that the sizes
        become as equal as possible, in the way with the highest sum of their mean co-assignments
        with the groups of `labels` (Hungarian method, scipy).
        """
        from scipy.optimize import linear_sum_assignment

        assert self.co_assignment is not None, "the recipe resamples the steps"
        groups = np.array(self.labels)
        firm = np.array(self.firmness) >= FIRM_TASK
        members = np.eye(groups.max() + 1)[groups]  # [N,G]
        mean = (self.co_assignment @ members / members.sum(axis=0))[~firm]
        sizes, places, filled = members[firm].sum(axis=0), list[int](), 0
        while len(places) < len(mean):  # a round adds a place to each of the smallest groups
            smallest, filled = np.flatnonzero(sizes == sizes.min()), len(places)
            sizes[smallest] += 1
            places += smallest.tolist()
        value = mean[:, places]
        value[:, :filled] += len(groups)  # only places of the last round may stay empty
        tasks, chosen = linear_sum_assignment(value, maximize=True)
        groups[np.flatnonzero(~firm)[tasks]] = np.array(places, dtype=int)[chosen]
        return [int(group) for group in groups]


def find_groups(
    chunks: GradientStatistics, tasks: Tensor, num_tasks: int, num_branches: int, *, estimate: bool
) -> GroupStart:
    """Group the tasks by their affinities.

    Args:
        chunks: Sums over samples from `statistic_sums`, stacked over C and K.
        tasks: The task of every residual.
        num_tasks: N.
        num_branches: K, the most groups.
        estimate: As for `group_tasks`.
    """
    from sklearn.metrics import adjusted_rand_score

    gradients = TaskGradients.of(chunks, tasks, num_tasks)
    affinity = gradients.affinity()
    labels = group_tasks(affinity, num_branches, estimate=estimate)
    resampled = gradients.resampled_groups(max(labels) + 1)
    together = (resampled[:, :, None] == resampled[:, None, :]).mean(axis=0)
    agreement = np.mean([adjusted_rand_score(labels, other) for other in resampled])
    return GroupStart(labels, affinity, together, float(agreement))


def branches_of_groups(labels: list[int], losses: Tensor) -> list[int]:
    """Return a branch for every task, so that groups get branches that already suit them.

    The sum of the tasks' losses is the lowest of all assignments of groups to branches (Hungarian
    method, scipy), each task's losses relative to their mean.

    Args:
        labels: Group of every task.
        losses: Mean losses of all heads [N,K]; NaN where there is none.
    """
    from scipy.optimize import linear_sum_assignment

    values = losses.double().cpu().numpy()
    known = ~np.isnan(values)
    mean = np.where(known, values, 0.0).sum(axis=1) / known.sum(axis=1).clip(1)
    relative = np.where(known, values / np.maximum(mean, 1e-12)[:, None], 1.0)
    groups = np.array(labels)
    cost = np.stack([relative[groups == group].sum(axis=0) for group in range(groups.max() + 1)])
    _, branches = linear_sum_assignment(cost)
    return [int(branches[group]) for group in labels]
