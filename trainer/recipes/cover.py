"""The best partition of the tasks into groups, by the affinity of the tasks in a group.

As in TAG (Fifty et al. 2021, section 4), a task's score in its group is the mean affinity of the
group's other members onto it, and a grouping's score the sum over the tasks. There groups may
overlap; here every task is trained once, so they do not. Like in its published code a group of one
task scores -1e6, so that such groups are made only where nothing else is possible. Where the score
of a task on its own is known, as in HOA, it takes the place of that number.

Legend: N tasks, G groups.
"""

from __future__ import annotations

import numpy as np

from trainer.recipes.groups import Groups, groups_of_labels, random_groups

ALONE = -1e6
MAX_EXACT = 12  # tasks; the exact search looks at 3^N pairs of sets
_STARTS = 8


def best_cover(affinity: np.ndarray, max_groups: int, alone: float = ALONE) -> Groups:
    """Partition the tasks into at most `max_groups` groups of the highest total score.

    Exact for up to `MAX_EXACT` tasks. For more, a local search: from several starts, the best
    move of one task or exchange of two is made until none is better; the best end is returned.

    Args:
        affinity: [N,N], of the row's task onto the column's; the diagonal is not looked at.
        max_groups: At least 1.
        alone: Score of a task that is a group of its own.
    """
    pair = affinity + affinity.T  # a grouping's score depends on both directions' sum only
    np.fill_diagonal(pair, 0.0)
    num_tasks = len(pair)
    if max_groups == 1 or num_tasks == 1:
        return (tuple(range(num_tasks)),)
    if num_tasks <= MAX_EXACT:
        return groups_of_labels(_exact(pair, max_groups, alone))
    starts = [_merged(pair, max_groups)] + [
        _labels(random_groups(num_tasks, max_groups, seed), num_tasks) for seed in range(_STARTS)
    ]
    ends = [_local_search(pair, start, max_groups, alone) for start in starts]
    best = max(ends, key=lambda labels: cover_score(affinity, labels, alone))
    return groups_of_labels(best.tolist())


def cover_score(affinity: np.ndarray, labels: np.ndarray, alone: float = ALONE) -> float:
    """The total score of a grouping, given as a label [N] for every task."""
    total = 0.0
    for label in np.unique(labels):
        (members,) = np.nonzero(labels == label)
        inner = affinity[np.ix_(members, members)]
        size = len(members)
        total += alone if size == 1 else (inner.sum() - inner.trace()) / (size - 1)
    return float(total)


def _score(inside: np.ndarray, size: np.ndarray, alone: float) -> np.ndarray:
    """Scores of groups from their members' summed pairs and their sizes; an empty one has 0."""
    several = inside / np.maximum(size - 1, 1)
    return np.where(size > 1, several, np.where(size == 1, alone, 0.0))


def _exact(pair: np.ndarray, max_groups: int, alone: float) -> list[int]:
    """Dynamic programming over sets of tasks, as bit masks: one group, then the rest."""
    num_tasks = len(pair)
    everything = (1 << num_tasks) - 1
    members = (np.arange(everything + 1)[:, None] >> np.arange(num_tasks)) & 1  # [2^N,N]
    inside = np.einsum("sn,nm,sm->s", members, pair, members, optimize=True) / 2
    score = _score(inside, members.sum(axis=1), alone).tolist()
    best, first_group = list(score), [list(range(everything + 1))]
    for _ in range(max_groups - 1):
        choice = _add_group(best, score)
        best, taken = [c[0] for c in choice], [c[1] for c in choice]
        first_group.append(taken)
    labels, left = [0] * num_tasks, everything
    for number, taken in enumerate(reversed(first_group)):
        for task in range(num_tasks):
            if taken[left] >> task & 1:
                labels[task] = number
        left &= ~taken[left]
    return labels


def _add_group(best: list[float], score: list[float]) -> list[tuple[float, int]]:
    """For every set the best score with one group more, and the group of its lowest task."""
    choice = [(0.0, 0)]
    for tasks in range(1, len(score)):
        lowest = tasks & -tasks
        rest = part = tasks ^ lowest
        best_choice = (score[tasks], tasks)
        while part:  # every set of tasks that is left to the other groups
            value = score[tasks ^ part] + best[part]
            if value > best_choice[0]:
                best_choice = (value, tasks ^ part)
            part = (part - 1) & rest
        choice.append(best_choice)
    return choice


def _labels(groups: Groups, num_tasks: int) -> np.ndarray:
    labels = np.zeros(num_tasks, dtype=int)
    for number, group in enumerate(groups):
        labels[list(group)] = number
    return labels


def _merged(pair: np.ndarray, max_groups: int) -> np.ndarray:
    """Greedy start: the two groups with the highest mean affinity are merged until G are left."""
    labels, links = np.arange(len(pair)), pair.copy()
    sizes = np.ones(len(pair))
    np.fill_diagonal(links, -np.inf)
    for _ in range(len(pair) - max_groups):
        mean = links / np.outer(sizes, sizes)
        keep, gone = np.unravel_index(int(mean.argmax()), mean.shape)
        links[keep] += links[gone]
        links[:, keep] = links[keep]
        links[keep, keep] = -np.inf
        links[gone] = links[:, gone] = -np.inf
        sizes[keep] += sizes[gone]
        labels[labels == gone] = keep
    return np.unique(labels, return_inverse=True)[1]


def _local_search(
    pair: np.ndarray, labels: np.ndarray, num_groups: int, alone: float
) -> np.ndarray:
    """Make the best move of a task, or else the best exchange of two, until none is better."""
    num_tasks = len(pair)
    labels, tasks = labels.copy(), np.arange(num_tasks)
    tolerance = 1e-9 * max(1e-300, float(np.abs(pair).max()))
    while True:
        one_hot = np.eye(num_groups)[labels]  # [N,G]
        link, size = pair @ one_hot, one_hot.sum(axis=0)
        inside = (one_hot * link).sum(axis=0) / 2  # [G]
        here = link[tasks, labels]
        score = _score(inside, size, alone)  # [G]
        without = _score(inside[labels] - here, size[labels] - 1, alone)  # [N]
        leaving = without - score[labels]
        joining = _score(inside + link, size + 1, alone) - score  # [N,G]
        gain = leaving[:, None] + joining
        gain[tasks, labels] = -np.inf
        task, group = np.unravel_index(int(gain.argmax()), gain.shape)
        if gain[task, group] > tolerance:
            labels[task] = group
            continue
        shared = 1.0 / np.maximum(size - 1, 1)
        toward = link[:, labels] - pair  # [n,m]: what n brings in m's place
        change = (toward - here[None, :]) * shared[labels][None, :]
        change = np.where(labels[:, None] == labels[None, :], -np.inf, change + change.T)
        first, second = np.unravel_index(int(change.argmax()), change.shape)
        if change[first, second] <= tolerance:
            return labels
        labels[[first, second]] = labels[[second, first]]
