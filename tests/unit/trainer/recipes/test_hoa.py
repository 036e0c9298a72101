from itertools import combinations, product

import numpy as np
import pytest

from trainer.errors import UserError
from trainer.recipes.hoa import (
    MAX_TASKS,
    best_groups,
    check_size,
    pair_gains,
    pair_losses,
    pair_rounds,
    predicted_gains,
)


def losses_of(num_tasks, seed):
    """Losses of different scales: of every task alone, and in a pair with every other one."""
    generator = np.random.default_rng(seed)
    scales = 10.0 ** generator.uniform(-2, 2, num_tasks)
    return generator.uniform(0.5, 1.5, (num_tasks, num_tasks)) * scales


def naive_total(losses, labels):
    """The paper's prediction: a task's loss in a group is the mean of its losses in the pairs.

    Every loss counts by how much it is below that of the task's own network.
    """
    total = 0.0
    for task, label in enumerate(labels):
        others = [o for o in range(len(labels)) if labels[o] == label and o != task]
        predicted = np.mean([losses[other, task] for other in others] or [losses[task, task]])
        total += 1 - predicted / losses[task, task]
    return total


@pytest.mark.parametrize("num_tasks", range(1, 13))
def test_rounds_train_every_pair_and_every_task_alone_once(num_tasks):
    rounds = pair_rounds(num_tasks)
    assert len(rounds) == num_tasks
    for groups in rounds:
        assert sorted(task for group in groups for task in group) == list(range(num_tasks))
    trained = [group for groups in rounds for group in groups]
    singles = [(task,) for task in range(num_tasks)]
    assert sorted(trained) == sorted([*singles, *combinations(range(num_tasks), 2)])


@pytest.mark.parametrize("num_tasks", [5, 6])
def test_losses_of_rounds_become_a_matrix(num_tasks):
    expected = losses_of(num_tasks, seed=1)
    rounds = pair_rounds(num_tasks)
    losses = [
        [
            next(expected[(set(g) - {t} or {t}).pop(), t] for g in groups if t in g)
            for t in range(num_tasks)
        ]
        for groups in rounds
    ]
    assert pair_losses(rounds, [np.array(row) for row in losses]) == pytest.approx(expected)


def test_gains_are_fractions_of_the_loss_alone():
    losses = np.array([[2.0, 3.0, np.nan], [1.0, 4.0, 5.0], [3.0, 4.0, 0.0]])
    assert pair_gains(losses) == pytest.approx(
        np.array([[0.0, 0.25, 0.0], [0.5, 0.0, 0.0], [-0.5, 0.0, 0.0]])
    )
    assert pair_gains(np.array([[-2.0, 1.0], [-3.0, 1.0]]))[1, 0] == pytest.approx(0.5)


@pytest.mark.parametrize("seed", range(3))
def test_the_loss_of_a_larger_group_is_predicted_from_its_pairs(seed):
    losses = losses_of(7, seed)
    gains = pair_gains(losses)
    for group in [(2,), (0, 4), (1, 3, 6), tuple(range(7))]:
        expected = [
            1 - np.mean([losses[o, t] for o in group if o != t] or losses[t, t]) / losses[t, t]
            for t in group
        ]
        assert predicted_gains(gains, group) == pytest.approx(expected)


@pytest.mark.parametrize(("num_tasks", "max_groups"), [(1, 2), (4, 1), (5, 3), (6, 2), (6, 4)])
@pytest.mark.parametrize("seed", range(3))
def test_no_partition_is_predicted_to_be_better(num_tasks, max_groups, seed):
    losses = losses_of(num_tasks, seed)
    groups = best_groups(pair_gains(losses), max_groups)
    assert len(groups) <= max_groups
    labels = [n for _, n in sorted((t, n) for n, g in enumerate(groups) for t in g)]
    best = max(naive_total(losses, c) for c in product(range(max_groups), repeat=num_tasks))
    assert naive_total(losses, labels) == pytest.approx(best)


def test_tasks_that_harm_all_others_are_on_their_own():
    """TAG's score of a single task would forbid it."""
    losses = np.full((15, 15), 1.0)  # more than the exact search takes
    losses[:14, :14] = 0.9 + 0.1 * np.eye(14)
    losses[14, :14] = losses[:14, 14] = 1.2
    assert best_groups(pair_gains(losses), 3)[-1] == (14,)


def test_more_tasks_than_pairs_can_be_trained_of(rooms_config):
    config = rooms_config("grouping.recipe=hoa")
    check_size(config, MAX_TASKS)
    with pytest.raises(UserError, match=r"'hoa' trains a network for each of 820 pairs of 41 tas"):
        check_size(config, MAX_TASKS + 1)
