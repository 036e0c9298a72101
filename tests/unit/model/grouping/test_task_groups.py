"""What the affinities and groups of the recipes with a warm-up have in common."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import adjusted_rand_score

from model.grouping import affinity as affinity_recipe
from model.grouping import subspaces
from tests.gradients import planted_statistics, samples, statistics_of


def least_squares_affinity(statistics, tasks, num_tasks):
    chunks = {name: value[None] for name, value in statistics.items()}
    return subspaces.TaskGradients.of(chunks, tasks, num_tasks).affinity()


@pytest.fixture(params=["subspaces", "affinity"], scope="module")
def method(request):
    """The affinity of all tasks from their statistics, and the groups from affinities."""
    if request.param == "subspaces":
        return SimpleNamespace(affinity=least_squares_affinity, group_tasks=subspaces.group_tasks)
    return SimpleNamespace(
        affinity=affinity_recipe.task_affinity, group_tasks=affinity_recipe.group_tasks
    )


def affinity_of(method, features, residuals, tasks):
    statistics = statistics_of((features, residuals))
    return method.affinity(statistics, torch.tensor(tasks), tasks.max() + 1)


def planted(method, *args, **options):
    statistics, tasks, truth = planted_statistics(*args, **options)
    return method.affinity(statistics, tasks, args[0]), truth


@given(seed=st.integers(0, 10**6), outputs=st.sampled_from([1, 3]))
@settings(max_examples=15, deadline=None)
def test_symmetric_with_a_diagonal_of_one_between_zero_and_one(method, seed, outputs):
    found = affinity_of(method, *samples(num_tasks=4, outputs=outputs, seed=seed))
    np.testing.assert_allclose(found, found.T, atol=1e-12)
    np.testing.assert_allclose(np.diag(found), 1.0, atol=1e-12)
    assert found.min() >= 0 and found.max() <= 1 + 1e-12


def test_the_scale_of_a_tasks_residuals_does_not_matter(method):
    features, residuals, tasks = samples(outputs=2)
    scaled = residuals * np.repeat([1e-3, 1, 7, 100, 1e3], 2)[:, None]
    found = affinity_of(method, features, scaled, tasks)
    np.testing.assert_allclose(
        found, affinity_of(method, features, residuals, tasks), rtol=1e-3, atol=1e-4
    )


def test_a_map_of_the_features_does_not_matter(method):
    """Rotations and shifts not at all, any other invertible map up to the ridge."""
    features, residuals, tasks = samples()
    expected = affinity_of(method, features, residuals, tasks)
    rng = np.random.default_rng(9)
    rotation = np.linalg.qr(rng.normal(size=(6, 6)))[0]
    moved = 5 * features @ rotation + 2
    np.testing.assert_allclose(affinity_of(method, moved, residuals, tasks), expected, atol=1e-3)
    stretched = features * np.array([0.5, 3, 1, 0.7, 2, 1.5]) @ rotation
    found = affinity_of(method, stretched, residuals, tasks)
    np.testing.assert_allclose(found, expected, atol=0.1)
    plain = residuals @ (stretched - stretched.mean(axis=0))
    plain /= np.linalg.norm(plain, axis=1, keepdims=True)
    assert np.abs(np.abs(plain @ plain.T) - expected).max() > 0.3, "whitening is what does it"


def test_signals_that_are_not_finite_say_nothing(method):
    """The loop stops the run for the losses; no eigenvalue problem may stop it first."""
    features, residuals, tasks = samples()
    residuals[1, 5] = np.nan
    features[0, 0] = np.inf
    found = affinity_of(method, features, residuals, tasks)
    assert np.isfinite(found).all()
    assert len(method.group_tasks(found, 2)) == 5


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("outputs", [1, 2])
def test_planted_subspaces_are_found(method, seed, outputs):
    affinity, truth = planted(method, 60, 3, seed=seed, outputs=outputs)
    for estimate in (True, False):
        found = method.group_tasks(affinity, 3, estimate=estimate)
        assert adjusted_rand_score(truth, found) == 1.0
    found = method.group_tasks(affinity, 8)
    assert set(found) == {0, 1, 2}, "of eight branches five are not needed"
    assert adjusted_rand_score(truth, found) == 1.0
    assert len(set(method.group_tasks(affinity, 8, estimate=False))) == 8


def test_groups_do_not_depend_on_the_order_of_the_tasks(method):
    affinity, _ = planted(method, 40, 4, seed=5)
    order = np.random.default_rng(0).permutation(40)
    found = np.array(method.group_tasks(affinity, 4))
    moved = method.group_tasks(affinity[np.ix_(order, order)], 4)
    assert adjusted_rand_score(found[order], moved) == 1.0
    assert method.group_tasks(affinity, 4) == found.tolist()


def test_tasks_without_labels_do_not_disturb_the_others(method):
    affinity, truth = planted(method, 60, 3)
    for task in (4, 17):
        affinity[task] = affinity[:, task] = 0
    found = method.group_tasks(affinity, 8)
    assert set(found) == {0, 1, 2}
    rest = [task for task in range(60) if task not in (4, 17)]
    assert adjusted_rand_score([truth[n] for n in rest], [found[n] for n in rest]) == 1.0


def test_few_tasks_and_one_branch(method):
    affinity, _ = planted(method, 6, 2)
    for num_branches in (6, 9):
        assert method.group_tasks(affinity, num_branches) == [0, 1, 2, 3, 4, 5]
    assert method.group_tasks(affinity, 1) == [0] * 6
    assert method.group_tasks(np.ones((1, 1)), 1) == [0]


@given(num_tasks=st.integers(2, 9), num_branches=st.integers(1, 9), seed=st.integers(0, 99))
@settings(max_examples=25, deadline=None)
def test_any_affinities_give_groups(method, num_tasks, num_branches, seed):
    rows = (
        np.random.default_rng(seed).normal(size=(num_tasks, 3))
        * (np.arange(num_tasks) > 0)[:, None]
    )
    affinity = np.abs(np.corrcoef(rows + 1e-9 * np.arange(3)))
    found = method.group_tasks(affinity, num_branches)
    assert len(found) == num_tasks and min(found) == 0 and max(found) < num_branches
