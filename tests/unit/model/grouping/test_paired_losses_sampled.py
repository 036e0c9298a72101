"""Heads of which only some are computed in a step, compared by way of a third one."""
# Legend: T steps, N tasks, K branches.

import numpy as np
import pytest
import torch

from model.grouping.paired_losses import PairedLosses

T, N, K = 600, 2, 4


def losses_of_pairs(pairs, seed=0):
    """Losses of two heads of each task in a step, of others NaN; head k is worse by k / 10."""
    generator = np.random.default_rng(seed)
    losses = np.full((T, N, K), np.nan)
    for step, task in np.ndindex(T, N):
        heads = list(pairs[generator.integers(len(pairs))])
        batch = generator.normal()
        losses[step, task, heads] = batch + 0.1 * np.array(heads) + generator.normal(size=2) / 50
    return losses


def fed(losses):
    paired = PairedLosses(N, K, torch.device("cpu"))
    for step in torch.from_numpy(losses).float():
        paired.add(step, torch.ones(N), torch.ones(N, K, dtype=torch.bool))
    return paired


def test_two_heads_that_never_met_are_compared_by_a_third():
    paired = fed(losses_of_pairs([(0, 1), (0, 2), (0, 3)]))
    _, direct = paired.compare(torch.tensor([2, 2]))
    assert direct.isinf().tolist() == [[False, True, False, True]] * N
    mean, error = paired.compare_through_others(torch.tensor([2, 2]))
    expected = torch.tensor([-0.2, -0.1, 0.0, 0.1])
    assert ((mean - expected).abs() <= 4 * error).all() and (error < 0.02).all()
    to_first, its_error = paired.compare(torch.tensor([0, 0]))  # the only third head there is
    for head in (1, 3):
        torch.testing.assert_close(mean[:, head], to_first[:, head] - to_first[:, 2])
        summed = its_error[:, head].square() + its_error[:, 2].square()
        torch.testing.assert_close(error[:, head], summed.sqrt())


def test_the_third_head_with_the_smallest_error_is_used():
    """Heads 1 and 3 met head 0 four times as often as head 2."""
    paired = fed(losses_of_pairs([(0, 1), (0, 3)] * 4 + [(1, 2), (2, 3)]))
    mean, error = paired.compare_through_others(torch.tensor([3, 3]))
    by = {k: paired.compare(torch.tensor([k, k])) for k in (0, 2)}
    errors = {k: (each[1][:, 1] ** 2 + each[1][:, 3] ** 2).sqrt() for k, each in by.items()}
    assert (errors[0] < errors[2]).all() and errors[2].isfinite().all()
    torch.testing.assert_close(error[:, 1], errors[0])
    torch.testing.assert_close(mean[:, 1], by[0][0][:, 1] - by[0][0][:, 3])


@pytest.mark.parametrize("branch", range(K))
def test_pairs_that_met_are_compared_directly(branch):
    losses = losses_of_pairs([(0, 1), (1, 2), (2, 3), (0, 3), (0, 2), (1, 3)])
    paired, branches = fed(losses), torch.tensor([branch] * N)
    for value, expected in zip(
        paired.compare_through_others(branches), paired.compare(branches), strict=True
    ):
        assert value.equal(expected)


def test_a_head_that_met_no_other_stays_unknown():
    paired = fed(losses_of_pairs([(0, 1)]))
    _, error = paired.compare_through_others(torch.tensor([0, 1]))
    assert error.isinf().tolist() == [[False, False, True, True]] * N
