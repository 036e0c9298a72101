"""The first groups: how firm they are, and which branches they get."""
# Legend: N tasks, K branches, C chunks, F features.

from itertools import permutations, product

import numpy as np
import pytest
import torch
from sklearn.metrics import adjusted_rand_score

from model.grouping.group_start import GroupStart, branches_of_groups, find_groups


def statistics(rows):
    """Statistics of one branch with white features, from the rows [C,N,F] of chunks."""
    count, num_tasks, num_features = rows.shape
    return {
        "count": torch.ones(count, 1),
        "features": torch.zeros(count, 1, 1, num_features),
        "residuals": torch.zeros(count, 1, num_tasks, 1),
        "products": torch.tensor(rows)[:, None],
        "second": torch.eye(num_features).expand(count, 1, -1, -1),
    }


def found(noise, num_groups=3, num_tasks=24, num_branches=3):
    rng = np.random.default_rng(0)
    truth = np.arange(num_tasks) % num_groups
    bases = np.linalg.qr(rng.normal(size=(20, 4 * num_groups)))[0].T.reshape(num_groups, 4, 20)
    signal = np.einsum("nd,ndf->nf", rng.normal(size=(num_tasks, 4)), bases[truth])
    rows = signal + noise * rng.normal(size=(8, num_tasks, 20))
    chunks, tasks = statistics(rows), torch.arange(num_tasks)
    return truth, find_groups(chunks, tasks, num_tasks, num_branches, estimate=True)


def test_clear_groups_are_firm():
    truth, start = found(noise=0.05)
    assert adjusted_rand_score(truth, start.labels) == 1.0
    assert start.agreement == 1.0 and start.firmness == [1.0] * 24
    assert np.array_equal(start.co_assignment, np.equal.outer(truth, truth))


def test_groups_of_noise_are_not_firm():
    _, start = found(noise=30.0)
    assert start.agreement < 0.4 and np.mean(start.firmness) < 0.6
    assert np.allclose(np.diag(start.co_assignment), 1.0)
    assert np.array_equal(start.co_assignment, start.co_assignment.T)


def test_firmness_against_sets():
    """The expected overlap over the expected union of a task's groups."""
    rng = np.random.default_rng(0)
    labels, others = rng.integers(3, size=10), rng.integers(3, size=(7, 10))
    together = np.mean([np.equal.outer(row, row) for row in others], axis=0)
    start = GroupStart(labels.tolist(), np.eye(10), together, 0.0)
    for task in range(10):
        own = {n for n in range(10) if labels[n] == labels[task]}
        groups = [{n for n in range(10) if row[n] == row[task]} for row in others]
        overlap = np.mean([len(own & group) for group in groups])
        union = np.mean([len(own | group) for group in groups])
        assert start.firmness[task] == pytest.approx(overlap / union)


def test_firm_groups_stay_as_they_are():
    truth, start = found(noise=0.05)
    truth[0] = truth[1]
    unequal = GroupStart(truth.tolist(), np.eye(24), np.equal.outer(truth, truth) * 1.0, 1.0)
    assert start.balanced == start.labels and unequal.balanced == truth.tolist()


def test_groups_whose_sizes_are_as_equal_as_possible_stay():
    labels = [0, 0, 1, 1, 1]
    together = np.where(np.equal.outer(labels, labels), 0.7, 0.2)
    np.fill_diagonal(together, 1.0)
    assert GroupStart(labels, np.eye(5), together, 0.0).balanced == labels


@pytest.mark.parametrize("seed", range(30))
def test_tasks_without_a_firm_group_balance_the_sizes_by_their_co_assignments(seed):
    """Against all groupings in which the tasks without a firm group may be anywhere."""
    rng = np.random.default_rng(seed)
    num_tasks = 6 + seed % 4
    labels = np.concatenate([np.arange(3), rng.integers(3, size=num_tasks - 3)])
    others = [np.where(rng.random(num_tasks) < 0.4, rng.permutation(labels), labels) for _ in "abc"]
    together = np.mean([np.equal.outer(other, other) for other in others], axis=0)
    start = GroupStart(labels.tolist(), np.eye(num_tasks), together, 0.0)
    loose = np.flatnonzero(np.array(start.firmness) < 0.8)
    mean = np.array([together[:, labels == group].mean(axis=1) for group in range(3)]).T

    def spread(groups):
        return np.var(np.bincount(groups, minlength=3))

    candidates = []
    for chosen in product(range(3), repeat=len(loose)):
        groups = labels.copy()
        groups[loose] = chosen
        candidates.append((spread(groups), mean[loose, groups[loose]].sum()))
    found = np.array(start.balanced)
    assert np.array_equal(np.delete(found, loose), np.delete(labels, loose))
    least = min(each for each, _ in candidates)
    assert spread(found) == pytest.approx(least)
    best = max(value for each, value in candidates if each == pytest.approx(least))
    assert mean[loose, found[loose]].sum() == pytest.approx(best)


@pytest.mark.parametrize("seed", range(5))
def test_branches_of_the_lowest_sum_of_relative_losses(seed):
    rng = np.random.default_rng(seed)
    losses = rng.uniform(0.5, 1.5, size=(9, 4)) * 10.0 ** rng.integers(-3, 3, size=(9, 1))
    labels = [0, 1, 2, 0, 1, 2, 0, 0, 1]
    relative = losses / losses.mean(axis=1, keepdims=True)
    best = min(
        permutations(range(4), 3),
        key=lambda branches: sum(relative[n, branches[g]] for n, g in enumerate(labels)),
    )
    assert branches_of_groups(labels, torch.tensor(losses)) == [best[g] for g in labels]


def test_a_task_without_a_loss_has_no_say():
    losses = torch.tensor([[1.0, 2.0], [torch.nan, torch.nan], [2.0, 1.0]])
    assert branches_of_groups([1, 1, 0], losses) == [0, 0, 1]
    assert branches_of_groups([0, 0, 1], torch.full((3, 2), torch.nan)) in ([0, 0, 1], [1, 1, 0])
