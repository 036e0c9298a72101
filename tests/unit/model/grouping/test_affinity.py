"""Affinities against their definition, and the groups found in planted subspaces."""
# Legend: N tasks, K branches, S samples, F features, O outputs.

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import adjusted_rand_score

from model.grouping.affinity import group_tasks, number_of_groups, task_affinity
from model.grouping.gradient_statistics import stack_statistics, statistic_sums

RIDGE = 0.01


def samples(num_tasks=5, num_samples=200, num_features=6, outputs=1, seed=0):
    """Features [S,F] that are neither centred nor white, residuals [N*O,S], and their tasks."""
    rng = np.random.default_rng(seed)
    features = rng.normal(size=(num_samples, num_features)) @ rng.normal(size=(num_features,) * 2)
    features += rng.normal(size=num_features)
    mixing = rng.normal(size=(num_tasks * outputs, num_features))
    residuals = mixing @ features.T + 3 * rng.normal(size=(num_tasks * outputs, num_samples))
    return features, residuals, np.repeat(np.arange(num_tasks), outputs)


def signals_of(*pairs):
    """What the branches with these features and residuals add up to, in float64."""
    branches = [
        statistic_sums(torch.tensor(f)[:, None].float(), torch.tensor(r)[..., None].float())
        for f, r in pairs
    ]
    return stack_statistics(branches)


def affinity_of(features, residuals, tasks):
    return task_affinity(signals_of((features, residuals)), torch.tensor(tasks), tasks.max() + 1)


def whitened(features, residuals):
    """Covariances of residuals and features [N*O,F], with the features made white."""
    centred = features - features.mean(axis=0)
    values, vectors = np.linalg.eigh(centred.T @ centred / len(features))
    scale = 1 / np.sqrt(values + RIDGE * values.mean())
    return residuals @ centred @ vectors * scale


def test_cosine_of_the_whitened_covariances_for_one_output():
    features, residuals, tasks = samples()
    rows = whitened(features, residuals)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    found = affinity_of(features, residuals, tasks)
    np.testing.assert_allclose(found, np.abs(rows @ rows.T), rtol=1e-3, atol=1e-4)


def test_root_of_the_rv_coefficient_for_several_outputs():
    features, residuals, _ = samples(num_tasks=3, outputs=2)
    tasks = np.array([0, 0, 0, 1, 2, 2])  # a task of one output among them
    rows = whitened(features, residuals)
    found = affinity_of(features, residuals, tasks)
    for one in range(3):
        for other in range(3):
            a, b = rows[tasks == one], rows[tasks == other]
            above = np.trace(a @ b.T @ b @ a.T)
            below = np.linalg.norm(a @ a.T) * np.linalg.norm(b @ b.T)
            assert found[one, other] == pytest.approx(np.sqrt(above / below), rel=1e-3, abs=1e-4)


def test_mean_over_the_branches():
    first, second = samples(seed=0), samples(seed=1)
    both = task_affinity(signals_of(first[:2], second[:2]), torch.tensor(first[2]), 5)
    expected = (affinity_of(*first) + affinity_of(*second)) / 2
    np.testing.assert_allclose(both, expected, rtol=1e-9)


@given(seed=st.integers(0, 10**6), outputs=st.sampled_from([1, 3]))
@settings(max_examples=15, deadline=None)
def test_symmetric_with_a_diagonal_of_one_between_zero_and_one(seed, outputs):
    found = affinity_of(*samples(num_tasks=4, outputs=outputs, seed=seed))
    np.testing.assert_allclose(found, found.T, atol=1e-12)
    np.testing.assert_allclose(np.diag(found), 1.0, atol=1e-12)
    assert found.min() >= 0 and found.max() <= 1 + 1e-12


def test_the_scale_of_a_tasks_residuals_does_not_matter():
    features, residuals, tasks = samples(outputs=2)
    scaled = residuals * np.repeat([1e-3, 1, 7, 100, 1e3], 2)[:, None]
    found = affinity_of(features, scaled, tasks)
    np.testing.assert_allclose(found, affinity_of(features, residuals, tasks), rtol=1e-3, atol=1e-4)


def test_a_map_of_the_features_does_not_matter():
    """Rotations and shifts not at all, any other invertible map up to the ridge."""
    features, residuals, tasks = samples()
    expected = affinity_of(features, residuals, tasks)
    rng = np.random.default_rng(9)
    rotation = np.linalg.qr(rng.normal(size=(6, 6)))[0]
    moved = 5 * features @ rotation + 2
    np.testing.assert_allclose(affinity_of(moved, residuals, tasks), expected, atol=1e-3)
    stretched = features * np.array([0.5, 3, 1, 0.7, 2, 1.5]) @ rotation
    found = affinity_of(stretched, residuals, tasks)
    np.testing.assert_allclose(found, expected, atol=0.1)
    plain = residuals @ (stretched - stretched.mean(axis=0))
    plain /= np.linalg.norm(plain, axis=1, keepdims=True)
    assert np.abs(np.abs(plain @ plain.T) - expected).max() > 0.3, "whitening is what does it"


def test_a_task_without_labels_is_like_no_other():
    features, residuals, tasks = samples()
    expected = affinity_of(features, residuals, tasks)
    residuals[2] = 0
    found = affinity_of(features, residuals, tasks)
    assert not found[2].any() and not found[:, 2].any()
    others = [0, 1, 3, 4]
    np.testing.assert_allclose(found[np.ix_(others, others)], expected[np.ix_(others, others)])


def test_signals_that_are_not_finite_say_nothing():
    """The loop stops the run for the losses; no eigenvalue problem may stop it first."""
    features, residuals, tasks = samples()
    residuals[1, 5] = np.nan
    features[0, 0] = np.inf
    found = affinity_of(features, residuals, tasks)
    assert np.isfinite(found).all()
    assert len(group_tasks(found, 2)) == 5


def planted(num_tasks, num_groups, dimensions=4, num_features=32, seed=0, outputs=1):
    """Affinities of tasks whose covariances lie in a random subspace of their group; the truth."""
    rng = np.random.default_rng(seed)
    bases = rng.normal(size=(num_groups, dimensions, num_features))
    truth = rng.integers(num_groups, size=num_tasks)
    weights = rng.normal(size=(num_tasks, outputs, dimensions))
    rows = np.einsum("nod,ndf->nof", weights, bases[truth]).reshape(-1, num_features)
    statistics = {
        "count": torch.ones(1),
        "features": torch.zeros(1, 1, num_features),
        "residuals": torch.zeros(1, len(rows), 1),
        "products": torch.tensor(rows)[None],
        "second": torch.eye(num_features)[None],
    }
    tasks = torch.arange(num_tasks).repeat_interleave(outputs)
    return task_affinity(statistics, tasks, num_tasks), truth.tolist()


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("outputs", [1, 2])
def test_planted_subspaces_are_found(seed, outputs):
    affinity, truth = planted(60, 3, seed=seed, outputs=outputs)
    for estimate in (True, False):
        found = group_tasks(affinity, 3, estimate=estimate)
        assert adjusted_rand_score(truth, found) == 1.0
    found = group_tasks(affinity, 8)
    assert set(found) == {0, 1, 2}, "of eight branches five are not needed"
    assert adjusted_rand_score(truth, found) == 1.0
    assert len(set(group_tasks(affinity, 8, estimate=False))) == 8


def test_groups_do_not_depend_on_the_order_of_the_tasks():
    affinity, _ = planted(40, 4, seed=5)
    order = np.random.default_rng(0).permutation(40)
    found = np.array(group_tasks(affinity, 4))
    moved = group_tasks(affinity[np.ix_(order, order)], 4)
    assert adjusted_rand_score(found[order], moved) == 1.0
    assert group_tasks(affinity, 4) == found.tolist()


def test_tasks_without_labels_do_not_disturb_the_others():
    affinity, truth = planted(60, 3)
    for task in (4, 17):
        affinity[task] = affinity[:, task] = 0
    found = group_tasks(affinity, 8)
    assert set(found) == {0, 1, 2}
    rest = [task for task in range(60) if task not in (4, 17)]
    assert adjusted_rand_score([truth[n] for n in rest], [found[n] for n in rest]) == 1.0


def test_few_tasks_and_one_branch():
    affinity, _ = planted(6, 2)
    for num_branches in (6, 9):
        assert group_tasks(affinity, num_branches) == [0, 1, 2, 3, 4, 5]
    assert group_tasks(affinity, 1) == [0] * 6
    assert group_tasks(np.ones((1, 1)), 1) == [0]


@given(num_tasks=st.integers(2, 9), num_branches=st.integers(1, 9), seed=st.integers(0, 99))
@settings(max_examples=25, deadline=None)
def test_any_affinities_give_groups(num_tasks, num_branches, seed):
    rows = (
        np.random.default_rng(seed).normal(size=(num_tasks, 3))
        * (np.arange(num_tasks) > 0)[:, None]
    )
    affinity = np.abs(np.corrcoef(rows + 1e-9 * np.arange(3)))
    found = group_tasks(affinity, num_branches)
    assert len(found) == num_tasks and min(found) == 0 and max(found) < num_branches


def blocks(*sizes):
    return np.kron(np.eye(len(sizes)), np.ones((sizes[0], sizes[0]))) - np.eye(sum(sizes))


@pytest.mark.parametrize("count", [2, 3, 5])
def test_as_many_groups_as_blocks(count):
    graph = blocks(*[6] * count)
    order = np.random.default_rng(0).permutation(len(graph))
    assert number_of_groups(graph[np.ix_(order, order)], 8) == count
    noise = np.random.default_rng(1).uniform(0, 0.05, size=graph.shape)
    assert number_of_groups(graph + (noise + noise.T) / 2, 8) == count
    assert number_of_groups(graph, count) == count


def test_without_a_clear_gap_there_are_as_many_as_may_be():
    assert number_of_groups(blocks(20), 8) == 8, "one block is no group"
    chain = np.eye(30, k=1) + np.eye(30, k=-1)
    assert number_of_groups(chain, 8) == 8
    assert number_of_groups(chain, 5) == 5
