"""Paired losses against weighted means and standard errors from the steps' own losses, by numpy."""
# Legend: T steps, N tasks, K branches.

import math

import numpy as np
import pytest
import torch

from model.grouping.margin import Margin
from model.grouping.paired_losses import PREFIX, PairedLosses

CPU = torch.device("cpu")
T, N, K = 60, 3, 4


def fed(losses, counts, alive=None, into=None):
    """Sums of losses [T,N,K] with labels [T,N]; heads that are off [T,N,K] are NaN, as in a run."""
    losses, counts = np.asarray(losses), np.asarray(counts)
    alive = np.ones(losses.shape, dtype=bool) if alive is None else alive
    sums = into or PairedLosses(*losses.shape[1:], CPU)
    for step, live, count in zip(losses, alive, counts, strict=True):
        given = torch.from_numpy(np.where(live, step, np.nan)).float()
        sums.add(given, torch.from_numpy(count).float(), torch.from_numpy(live))
    return sums


def step_weights(num_steps):
    """Of the steps: t (t + 1) ... (t + 4)."""
    steps = np.arange(1, num_steps + 1, dtype=float)
    return np.prod([steps + n for n in range(5)], axis=0)


def naive(losses, counts, task, head, other):
    """Mean and standard error of a difference, and the other head's loss, in float64."""
    known = ~np.isnan(losses[:, task, head]) & ~np.isnan(losses[:, task, other])
    weights = (step_weights(len(losses)) * counts[:, task])[known]
    weights /= weights.sum()
    difference = (losses[:, task, other] - losses[:, task, head])[known]
    mean = weights @ difference
    effective = 1 / (weights**2).sum()
    error = np.sqrt((weights**2) @ (difference - mean) ** 2 * effective / (effective - 1))
    return mean, error, weights @ losses[known, task, other]


def random_steps(seed=0, num_steps=T):
    generator = np.random.default_rng(seed)
    base = generator.gamma(2.0, size=(num_steps, N, 1))
    losses = base + generator.normal(0.2, 0.3, size=(num_steps, N, K)) + 0.1 * np.arange(K)
    return losses, generator.integers(1, 9, size=(num_steps, N)).astype(float)


def assert_margin(margin, expected):
    np.testing.assert_allclose(
        [margin.mean, margin.standard_error, margin.other_loss], expected, rtol=1e-4
    )


def test_means_and_errors_are_those_of_the_weighted_steps():
    losses, counts = random_steps()
    mean, error = fed(losses, counts).compare(torch.tensor([2, 0, 3]))
    for task, head in enumerate((2, 0, 3)):
        for other in range(K):
            if other == head:
                assert (mean[task, other], error[task, other]) == (0, 0)
                continue
            expected = naive(losses, counts, task, head, other)
            np.testing.assert_allclose(mean[task, other], expected[0], rtol=1e-4, atol=1e-6)
            np.testing.assert_allclose(error[task, other], expected[1], rtol=1e-4)


def test_the_margin_is_against_the_best_other_branch():
    losses, counts = random_steps(1)
    branches = [0, 1, 3]
    margins = fed(losses, counts).margins(branches)
    for task, (head, margin) in enumerate(zip(branches, margins, strict=True)):
        rivals = [naive(losses, counts, task, head, k) for k in range(K) if k != head]
        assert_margin(margin, min(rivals))


def test_steps_without_a_label_or_a_head_do_not_count():
    """Task 0 is labelled in a third of the steps; of task 1 a step computes two of the heads."""
    num_steps = 5 * T
    losses, counts = random_steps(2, num_steps)
    generator = np.random.default_rng(3)
    unlabelled = np.arange(num_steps) % 3 > 0
    losses[unlabelled, 0] = np.nan
    counts[unlabelled, 0] = 0
    for step in range(num_steps):
        losses[step, 1, generator.permutation(K)[:2]] = np.nan
    sums = fed(losses, counts)
    mean, error = sums.compare(torch.zeros(N, dtype=torch.long))
    for task in range(N):
        for other in range(1, K):
            expected = naive(losses, counts, task, 0, other)
            np.testing.assert_allclose(mean[task, other], expected[0], rtol=1e-4, atol=1e-6)
            np.testing.assert_allclose(error[task, other], expected[1], rtol=1e-4)
    weights = step_weights(num_steps)[:, None] * counts
    for task in range(N):
        known = ~np.isnan(losses[:, task, 3])
        expected = np.average(losses[known, task, 3], weights=weights[known, task])
        np.testing.assert_allclose(sums.losses()[task, 3], expected, rtol=1e-5)


def test_few_steps_give_no_error():
    """Eight steps of equal weight are needed, and the last steps count most."""
    losses, counts = random_steps(4, num_steps=40)
    first = next(t for t in range(1, 41) if fed(losses[:t], counts[:t] * 0 + 1).margins([0] * N)[0])
    weights = step_weights(first)
    assert weights.sum() ** 2 / (weights**2).sum() >= 8
    weights = step_weights(first - 1)
    assert weights.sum() ** 2 / (weights**2).sum() < 8


def test_before_the_first_step_nothing_is_known_and_nothing_takes_memory():
    sums = PairedLosses(1000, 1000, CPU)  # the recipe single_task; all pairs would take 24 GB
    assert sums.margins(range(1000)) == [None] * 1000
    assert sums.tensors() == {} and bool(sums.losses().isnan().all())


def test_a_task_without_labels_has_no_margin():
    losses, counts = random_steps(5)
    losses[:, 1], counts[:, 1] = np.nan, 0
    margins = fed(losses, counts).margins([0] * N)
    assert margins[1] is None and margins[0] is not None
    assert bool(fed(losses, counts).losses()[1].isnan().all())


def test_a_head_that_is_off_keeps_what_was_known():
    """Also its loss of that time: the margin is relative to it, however far the loss falls then."""
    losses, counts = random_steps(6, num_steps=2 * T)
    losses[T:] /= 10
    alive = np.ones(losses.shape, dtype=bool)
    alive[T:, :, 2:] = False
    alive[T:, 0, 1] = False  # the only head of task 0 has no rival any more
    sums = fed(losses, counts, alive)
    before = fed(losses[:T], counts[:T])
    for task, other in ((0, 1), (0, 2), (1, 3)):
        mean, error = (value[task, other] for value in sums.compare(torch.zeros(N).long()))
        expected = naive(losses[:T], counts[:T], task, 0, other)
        np.testing.assert_allclose([mean, error], expected[:2], rtol=1e-4, atol=1e-6)
    assert sums.margins([0] * N)[0] == before.margins([0] * N)[0]
    rival = naive(losses, counts, 1, 0, 1)
    rivals = [rival, *(naive(losses[:T], counts[:T], 1, 0, k) for k in (2, 3))]
    assert_margin(sums.margins([0] * N)[1], min(rivals))


@pytest.mark.parametrize("kept", [[1, 3], [0, 2, 3], [2]])
def test_branches_that_are_gone_are_remembered(kept):
    losses, counts = random_steps(7, num_steps=2 * T)
    alive = np.ones(losses.shape, dtype=bool)
    alive[T:, :, [k for k in range(K) if k not in kept]] = False
    sums = fed(losses[:T], counts[:T])
    sums.drop(kept)
    sums = fed(losses[T:][:, :, kept], counts[T:], into=sums)
    assert sums.losses().shape == (N, len(kept))
    whole = fed(losses, counts, alive)
    for place, branch in enumerate(kept):
        for margin, expected in zip(
            sums.margins([place] * N), whole.margins([branch] * N), strict=True
        ):
            values = (expected.mean, expected.standard_error, expected.other_loss)
            assert_margin(margin, values)


def test_branches_go_one_after_another():
    """The best of all that are gone stays, not the last of them."""
    losses, counts = random_steps(8)
    losses[:, :, 1] = losses[:, :, 0] + 0.01 * losses[:, :, 2]  # the best rival of branch 0
    sums = fed(losses, counts)
    expected = sums.margins([0] * N)
    sums.drop([0, 2, 3])
    sums.drop([0, 2])
    sums.drop([0])
    assert sums.margins([0] * N) == expected


def test_a_checkpoint_restores_everything():
    losses, counts = random_steps(9, num_steps=2 * T)
    whole, first = fed(losses, counts), fed(losses[:T], counts[:T])
    stored = {PREFIX + name: value.clone() for name, value in first.tensors().items()}
    stored["logits"] = torch.zeros(N, K)
    again = fed(losses[T:], counts[T:], into=PairedLosses.of_checkpoint(stored, (N, K), CPU))
    assert again.margins([1] * N) == whole.margins([1] * N)
    assert all(bool(value.isfinite().all()) for value in again.tensors().values())
    again.drop([0, 2])
    assert all(bool(value.isfinite().all()) for value in again.tensors().values())
    restored = PairedLosses(N, 2, CPU)
    restored.load(again.tensors())
    assert restored.margins([0] * N) == again.margins([0] * N)


def test_a_checkpoint_of_an_earlier_version_has_no_sums():
    empty = PairedLosses.of_checkpoint({"logits": torch.zeros(N, K)}, (N, K), CPU)
    assert empty.margins([0] * N) == [None] * N


def test_the_standard_error_is_calibrated():
    """Independent noise around equal losses is beyond 2 errors in about 5 of 100 cases.

    The same batch is hard for both heads, so that an error without pairs would be 1.8 times as
    large; one that is wrong by a tenth gives 3 or 7 of 100.
    """
    generator = np.random.default_rng(10)
    cases, steps = 3000, 250
    batch = generator.normal(size=(steps, cases, 1))
    losses = 5 + 1.5 * batch + generator.normal(size=(steps, cases, 2))
    counts = generator.integers(1, 4, size=(steps, cases)).astype(float)
    sums = fed(losses, counts)
    mean, error = sums.compare(torch.zeros(cases, dtype=torch.long))
    z = (mean[:, 1] / error[:, 1]).numpy()
    assert abs(z.mean()) < 0.05
    assert 0.040 < (np.abs(z) > 2).mean() < 0.062
    assert sum(margin.significant for margin in sums.margins([0] * cases)) < 0.006 * cases


def test_a_margin_relative_to_the_other_loss():
    margin = Margin(0.1, 0.02, 2.0)
    assert (margin.relative, margin.relative_error) == (0.05, 0.01)
    assert margin.significant and not Margin(0.1, 0.04, 2.0).significant
    assert not Margin(0.0, 0.0, 2.0).significant, "equal heads"
    below = Margin(0.5, 0.01, -1.0)  # a loss of a plug-in
    assert below.significant and below.relative is None and below.relative_error is None
    assert math.isclose(Margin(-0.3, 0.1, 1.5).relative, -0.2)
