"""Affinities against their definition, and the groups found in planted subspaces."""
# Legend: N tasks, K branches, S samples, F features, O outputs.

import numpy as np
import pytest
import torch

from model.grouping.affinity import number_of_groups, task_affinity
from tests.gradients import samples, statistics_of

RIDGE = 0.01


def affinity_of(features, residuals, tasks):
    return task_affinity(statistics_of((features, residuals)), torch.tensor(tasks), tasks.max() + 1)


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
    both = task_affinity(statistics_of(first[:2], second[:2]), torch.tensor(first[2]), 5)
    expected = (affinity_of(*first) + affinity_of(*second)) / 2
    np.testing.assert_allclose(both, expected, rtol=1e-9)


def test_a_task_without_labels_is_like_no_other():
    features, residuals, tasks = samples()
    expected = affinity_of(features, residuals, tasks)
    residuals[2] = 0
    found = affinity_of(features, residuals, tasks)
    assert not found[2].any() and not found[:, 2].any()
    others = [0, 1, 3, 4]
    np.testing.assert_allclose(found[np.ix_(others, others)], expected[np.ix_(others, others)])


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
