"""Affinities against their definition, and the groups found in planted subspaces."""
# Legend: N tasks, K branches, S samples, F features, O outputs.

import numpy as np
import pytest
import torch
from sklearn.metrics import adjusted_rand_score

from model.grouping.subspaces import TaskGradients, group_tasks
from tests.gradients import samples, statistics_of

WHITENING, RIDGE, NOISE_RIDGE = 0.01, 0.3, 3.0


def task_gradients(statistics, tasks, num_tasks):
    """Of statistics that are all in one chunk."""
    chunks = {name: value[None] for name, value in statistics.items()}
    return TaskGradients.of(chunks, torch.tensor(tasks), num_tasks)


def affinity_of(features, residuals, tasks):
    return task_gradients(statistics_of((features, residuals)), tasks, tasks.max() + 1).affinity()


def least_squares(*branches, ridge=RIDGE):
    """Every row as a combination of all rows, by the normal equations; rows [R,F] of branches."""
    inner = np.mean([rows @ rows.T for rows in branches], axis=0)
    return np.linalg.inv(inner + ridge * np.eye(len(inner))) @ inner


def whitened(features, residuals):
    """Covariances of residuals and features [N*O,F], with the features made white."""
    centred = features - features.mean(axis=0)
    values, vectors = np.linalg.eigh(centred.T @ centred / len(features))
    scale = 1 / np.sqrt(values + WHITENING * values.mean())
    return residuals @ centred @ vectors * scale


def test_least_squares_of_the_whitened_covariances_for_one_output():
    features, residuals, tasks = samples()
    rows = whitened(features, residuals)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    expected = np.abs(least_squares(rows))
    size = np.sqrt(np.diag(expected))
    found = affinity_of(features, residuals, tasks)
    np.testing.assert_allclose(found, expected / np.outer(size, size), rtol=1e-3, atol=1e-4)


def test_the_size_of_the_coefficients_for_several_outputs():
    features, residuals, _ = samples(num_tasks=3, outputs=2)
    tasks = np.array([0, 0, 0, 1, 2, 2])  # a task of one output among them
    rows = whitened(features, residuals)
    for task in range(3):
        rows[tasks == task] /= np.linalg.norm(rows[tasks == task])
    coefficients = least_squares(rows)
    size = [
        [np.linalg.norm(coefficients[tasks == n][:, tasks == m]) for m in range(3)]
        for n in range(3)
    ]
    squares = np.array(size) ** 2
    diagonal = np.sqrt(np.diag(squares))
    expected = np.sqrt((squares + squares.T) / 2 / np.outer(diagonal, diagonal))
    found = affinity_of(features, residuals, tasks)
    np.testing.assert_allclose(found, np.minimum(expected, 1.0), rtol=1e-3, atol=1e-4)


def test_branches_are_looked_at_together():
    first, second = samples(seed=0), samples(seed=1)
    found = task_gradients(statistics_of(first[:2], second[:2]), first[2], 5).affinity()
    rows = [whitened(*each[:2]) for each in (first, second)]
    rows = [each / np.linalg.norm(each, axis=1, keepdims=True) for each in rows]
    expected = np.abs(least_squares(*rows))
    size = np.sqrt(np.diag(expected))
    np.testing.assert_allclose(found, expected / np.outer(size, size), rtol=1e-3, atol=1e-4)


def chunks_of(rows):
    """Statistics of one branch with white features, from the rows [C,R,F] of chunks."""
    count, num_rows, num_features = rows.shape
    return {
        "count": torch.ones(count, 1),
        "features": torch.zeros(count, 1, 1, num_features),
        "residuals": torch.zeros(count, 1, num_rows, 1),
        "products": torch.tensor(rows)[:, None],
        "second": torch.eye(num_features).expand(count, 1, -1, -1),
    }


@pytest.mark.parametrize("noise", [0.0, 0.5, 2.0])
def test_noise_is_estimated_from_the_halves_and_adds_to_the_ridge(noise):
    rng = np.random.default_rng(0)
    signal = rng.normal(size=(30, 400)) / 20  # every task has a squared norm of about one
    scale = np.sqrt(noise * 8) / 20  # over 8 chunks the noise averages to `noise` of the signal
    rows = signal + scale * rng.normal(size=(8, 30, 400))
    gradients = TaskGradients.of(chunks_of(rows), torch.arange(30), 30)
    assert gradients.noise == pytest.approx(noise, rel=0.15, abs=1e-6)
    total = rows.sum(axis=0)
    total /= np.linalg.norm(total, axis=1, keepdims=True)
    expected = np.abs(least_squares(total, ridge=RIDGE + NOISE_RIDGE * gradients.noise))
    size = np.sqrt(np.diag(expected))
    np.testing.assert_allclose(gradients.affinity(), expected / np.outer(size, size), rtol=1e-4)


def test_chunks_count_as_often_as_they_are_drawn():
    rows = np.random.default_rng(0).normal(size=(4, 6, 9))
    drawn = [0, 2, 1, 1]
    again = np.concatenate(
        [rows[[chunk]] for chunk, count in enumerate(drawn) for _ in range(count)]
    )
    gradients = TaskGradients.of(chunks_of(rows), torch.arange(6), 6)
    total = (np.array(drawn)[:, None, None] * rows).sum(axis=0)
    np.testing.assert_allclose(again.sum(axis=0), total)
    total /= np.linalg.norm(total, axis=1, keepdims=True)
    expected = np.abs(least_squares(total, ridge=RIDGE + NOISE_RIDGE * gradients.noise))
    size = np.sqrt(np.diag(expected))
    found = gradients.affinity(drawn)
    np.testing.assert_allclose(found, expected / np.outer(size, size), rtol=1e-4)


def test_chunks_without_samples_are_left_out():
    """Of a warm-up with fewer steps than chunks; drawn again, they would be steps without tasks."""
    rows = np.random.default_rng(0).normal(size=(3, 6, 9))
    filled, padded = chunks_of(rows), chunks_of(np.concatenate([rows, 0 * rows]))
    for name, value in padded.items():
        value = value.clone()
        value[3:] = 0
        padded[name] = value
    found, expected = (TaskGradients.of(chunks, torch.arange(6), 6) for chunks in (padded, filled))
    assert len(found.rows) == 3 and found.noise == expected.noise
    assert np.array_equal(found.resampled_groups(2), expected.resampled_groups(2))


def test_resampled_groups_show_which_tasks_are_a_coin_toss():
    """Two clear groups, and a task whose chunks pull it to one or the other."""
    rng = np.random.default_rng(0)
    first, second = np.eye(8)[:2]
    rows = np.array([[first] * 4 + [second] * 4 + [first if c % 2 else second] for c in range(8)])
    rows = rows + 0.05 * rng.normal(size=rows.shape)
    found = TaskGradients.of(chunks_of(rows), torch.arange(9), 9).resampled_groups(2, count=60)
    assert found.shape == (60, 9)
    for group in (found[:, :4], found[:, 4:8]):
        assert (group == group[:, :1]).all()
    assert 0.25 < (found[:, 8] == found[:, 0]).mean() < 0.75


def test_a_task_without_labels_is_like_no_other():
    features, residuals, tasks = samples()
    others = [0, 1, 3, 4]
    expected = affinity_of(features, residuals[others], np.arange(4))
    residuals[2] = 0
    found = affinity_of(features, residuals, tasks)
    assert not found[2].any() and not found[:, 2].any()
    np.testing.assert_allclose(found[np.ix_(others, others)], expected)


def blocks(*sizes, within=0.4, between=0.05):
    """Affinities of groups of these sizes, with a little noise."""
    labels = np.repeat(np.arange(len(sizes)), sizes)
    affinity = np.where(np.equal.outer(labels, labels), within, between)
    noise = np.random.default_rng(1).uniform(0.7, 1.3, size=affinity.shape)
    affinity = affinity * (noise + noise.T) / 2
    np.fill_diagonal(affinity, 1.0)
    return affinity


@pytest.mark.parametrize("count", [2, 3, 5])
def test_as_many_groups_as_blocks(count):
    affinity = blocks(*[9] * count)
    order = np.random.default_rng(0).permutation(len(affinity))
    found = group_tasks(affinity[np.ix_(order, order)], 8)
    assert adjusted_rand_score((order // 9).tolist(), found) == 1.0
    assert len(set(group_tasks(affinity, count))) == count


def test_without_clear_groups_there_are_as_many_as_may_be():
    assert len(set(group_tasks(blocks(24), 8))) == 8, "one block is no group"
    assert len(set(group_tasks(blocks(9, 9, 9, within=0.08), 8))) == 8


def test_one_group_less_needs_stronger_evidence_than_several():
    affinity = blocks(9, 9, 9, within=0.4, between=0.14)
    assert len(set(group_tasks(affinity, 8))) == 3
    assert len(set(group_tasks(affinity, 4))) == 4
    assert len(set(group_tasks(blocks(9, 9, 9), 4))) == 3


@pytest.mark.parametrize(("near", "expected"), [(0.2, 4), (0.25, 4), (0.32, 3), (0.4, 3)])
def test_two_groups_that_are_near_stay_apart_if_each_is_denser_inside(near, expected):
    affinity = blocks(9, 9, 9, 9, within=0.4, between=0.05)
    affinity[:9, 9:18] *= near / 0.05
    affinity[9:18, :9] *= near / 0.05
    assert len(set(group_tasks(affinity, 4))) == expected
