from itertools import product

import numpy as np
import pytest

from trainer.recipes.cover import ALONE, MAX_EXACT, best_cover, cover_score


def affinity_of(num_tasks, seed):
    return np.random.default_rng(seed).normal(size=(num_tasks, num_tasks))


def labels_of(groups):
    return np.array([n for _, n in sorted((t, n) for n, g in enumerate(groups) for t in g)])


def naive_score(affinity, labels):
    """The definition: every task's mean affinity from the other members, -1e6 if there is none."""
    total = 0.0
    for task, label in enumerate(labels):
        others = [o for o in range(len(labels)) if labels[o] == label and o != task]
        total += np.mean([affinity[other, task] for other in others]) if others else ALONE
    return total


def brute_force(affinity, max_groups):
    labels = product(range(max_groups), repeat=len(affinity))
    return max(naive_score(affinity, choice) for choice in labels)


@pytest.mark.parametrize(("num_tasks", "max_groups"), [(2, 2), (4, 2), (5, 3), (6, 3), (6, 4)])
@pytest.mark.parametrize("seed", range(3))
def test_small_covers_are_the_best_there_are(num_tasks, max_groups, seed):
    affinity = affinity_of(num_tasks, seed)
    groups = best_cover(affinity, max_groups)
    assert sorted(task for group in groups for task in group) == list(range(num_tasks))
    assert len(groups) <= max_groups
    found = cover_score(affinity, labels_of(groups))
    assert found == pytest.approx(naive_score(affinity, labels_of(groups)))
    assert found == pytest.approx(brute_force(affinity, max_groups))


def test_the_direction_of_an_affinity_counts_for_the_task_that_receives_it():
    """Task 2 gains from 0 and harms it: the sum of both decides, as both tasks' scores do."""
    affinity = np.array([[9.0, 0.1, 0.9], [0.1, 9.0, 0.2], [-0.9, 0.2, 9.0]])
    labels = np.array([0, 1, 0])
    assert cover_score(affinity, labels) == pytest.approx(0.9 - 0.9 + ALONE)


def test_local_search_finds_what_the_exact_search_finds(monkeypatch):
    cases = [(affinity_of(9, seed), 3) for seed in range(10)]
    exact = [cover_score(a, labels_of(best_cover(a, k))) for a, k in cases]
    monkeypatch.setattr("trainer.recipes.cover.MAX_EXACT", 0)
    local = [cover_score(a, labels_of(best_cover(a, k))) for a, k in cases]
    assert np.mean(np.isclose(local, exact)) >= 0.8
    assert all(found <= best + 1e-9 for found, best in zip(local, exact, strict=True))


@pytest.mark.parametrize(("num_tasks", "num_groups"), [(MAX_EXACT + 1, 3), (60, 3), (200, 8)])
def test_planted_groups_are_found(num_tasks, num_groups):
    generator = np.random.default_rng(7)
    true = generator.permutation(np.arange(num_tasks) % num_groups)
    same = true[:, None] == true[None, :]
    affinity = np.where(same, 0.3, 0.0) + 0.2 * generator.normal(size=same.shape)
    found = labels_of(best_cover(affinity, num_groups))
    assert len(set(zip(true.tolist(), found.tolist(), strict=True))) == num_groups


def test_one_group_and_one_task():
    assert best_cover(affinity_of(5, 0), 1) == ((0, 1, 2, 3, 4),)
    assert best_cover(affinity_of(1, 0), 4) == ((0,),)


def test_the_affinity_is_left_as_it_was():
    affinity = affinity_of(6, 1)
    before = affinity.copy()
    best_cover(affinity, 3)
    assert np.array_equal(affinity, before)
