"""Paired changes and their intervals, against closed forms, plain resampling and simulated data."""

import math

import numpy as np
import pytest
from scipy.stats import ttest_1samp

from model.tasks.spec import TaskSpec
from trainer.compare.paired import interval, paired_change

ERROR, OVERLAP = TaskSpec("sphere", "binary"), TaskSpec("parts", "dense_classification", channels=3)


def metrics(error, miou):
    return {"sphere": {"error": error, "f1": 0.1}, "parts": {"miou": miou}}


def test_changes_are_paired_by_seed_and_relative_to_the_mean_of_the_reference():
    runs = {0: metrics(0.1, 0.5), 1: metrics(0.3, 0.7), 7: metrics(0.9, 0.9)}
    reference = {1: metrics(0.2, 0.4), 0: metrics(0.2, 0.6), 3: metrics(0.0, 0.1)}
    change = paired_change([ERROR, OVERLAP], runs, reference, "random")
    assert (change.reference, change.seeds, change.left_out) == ("random", (0, 1), ())
    # Errors fall by 0.1 and rise by 0.1, of 0.2; overlaps fall by 0.1 and rise by 0.3, of 0.5.
    assert change.by_task["sphere"] == pytest.approx((50.0, -50.0))
    assert change.by_task["parts"] == pytest.approx((-20.0, 60.0))
    assert change.values == pytest.approx((15.0, 5.0)) and change.mean == pytest.approx(10.0)
    assert change.low < 10 < change.high and change.sign == 0


def test_the_order_of_seeds_does_not_matter_but_their_pairing_does():
    values = [0.1, 0.2, 0.3]
    runs = {seed: metrics(value - 0.02, 0.5) for seed, value in enumerate(values)}
    same = {seed: metrics(value, 0.5) for seed, value in enumerate(values)}
    turned = {seed: metrics(value, 0.5) for seed, value in enumerate(reversed(values))}
    paired, unpaired = (paired_change([ERROR], runs, other, "r") for other in (same, turned))
    assert paired.mean == pytest.approx(unpaired.mean) == pytest.approx(10.0)
    assert paired.sign == 1 and unpaired.sign == 0


def test_a_noisy_copy_of_the_reference_is_neither_better_nor_worse():
    """With each run's own reference as the denominator it would be 10 % worse."""
    rng, names = np.random.default_rng(0), [f"t{n}" for n in range(400)]
    specs = [TaskSpec(name, "binary") for name in names]

    def runs():
        noise = np.exp(0.3 * rng.standard_normal((10, len(names))))
        return {
            s: {n: {"error": 0.1 * v} for n, v in zip(names, noise[s], strict=True)}
            for s in range(10)
        }

    ours, theirs = runs(), runs()
    change = paired_change(specs, ours, theirs, "r")
    assert abs(change.mean) < 2 and change.sign == 0
    ratios = [1 - ours[s][n]["error"] / theirs[s][n]["error"] for s in range(10) for n in names]
    assert 100 * np.mean(ratios) < -7


@pytest.mark.parametrize(
    ("ours", "theirs", "left_out"),
    [
        ({"sphere": {"error": 0.1}}, {"sphere": {"error": 0.0}}, True),
        ({"sphere": {"error": 0.1}}, {}, True),
        ({}, {"sphere": {"error": 0.1}}, True),
        ({"sphere": {"error": 0.1}}, {"sphere": {"error": math.nan}}, True),
        ({"sphere": {"error": 0.0}}, {"sphere": {"error": 0.1}}, False),
    ],
)
def test_tasks_without_a_reference_are_left_out_and_named(ours, theirs, left_out):
    runs = [{seed: {**metrics(0.1, 0.5), **each} for seed in (0, 1)} for each in (ours, theirs)]
    for each, part in zip(runs, (ours, theirs), strict=True):
        if not part:
            for tasks in each.values():
                del tasks["sphere"]
    change = paired_change([ERROR, OVERLAP], *runs, "r")
    assert change.left_out == (("sphere",) if left_out else ())
    assert change.mean == pytest.approx(0.0 if left_out else 50.0)


def test_a_reference_of_zero_with_one_seed_is_no_reason_to_leave_a_task_out():
    runs = {0: metrics(0.1, 0.5), 1: metrics(0.1, 0.5)}
    reference = {0: metrics(0.0, 0.5), 1: metrics(0.4, 0.5)}
    change = paired_change([ERROR], runs, reference, "r")
    assert change.by_task["sphere"] == pytest.approx((-50.0, 150.0))


def test_metrics_that_are_not_finite_give_no_interval():
    runs = {0: metrics(0.1, 0.5), 1: metrics(math.nan, 0.5), 2: metrics(0.1, 0.5)}
    reference = {seed: metrics(0.1, 0.5) for seed in range(3)}
    change = paired_change([ERROR, OVERLAP], runs, reference, "r")
    assert math.isnan(change.mean) and change.low is None and change.not_finite == (1,)


def test_without_common_seeds_or_tasks_there_is_nothing():
    change = paired_change([ERROR], {0: metrics(0.1, 0.5)}, {1: metrics(0.1, 0.5)}, "r")
    assert (change.mean, change.seeds, change.values, change.sign) == (None, (), (), 0)


def test_one_seed_has_no_interval_and_equal_changes_have_one_of_no_width():
    assert interval(np.array([[1.0, 2.0, 3.0]])) is None
    assert interval(np.full((3, 4), 2.5)) == (2.5, 2.5)


def test_one_task_gives_the_interval_of_the_paired_t_test():
    values = np.array([1.0, 3.0, 2.0, 7.0])
    expected = ttest_1samp(values, 0.0).confidence_interval(0.95)
    assert interval(values[:, None]) == pytest.approx(tuple(expected))


def test_equal_tasks_give_the_interval_of_the_seeds():
    values = np.array([1.0, 3.0, 2.0])
    expected = ttest_1samp(values, 0.0).confidence_interval(0.95)
    assert interval(np.repeat(values[:, None], 9, axis=1)) == pytest.approx(tuple(expected))


def test_the_variance_is_that_of_resampled_seeds_and_tasks():
    """Resample each with replacement, correct for their number, and compare the width."""
    rng = np.random.default_rng(3)
    seeds, tasks = 4, 6
    changes = rng.standard_normal((seeds, tasks)) + 3 * rng.standard_normal(tasks) + 5
    parts = []
    for means in (changes.mean(axis=1), changes.mean(axis=0)):
        n = len(means)
        resampled = rng.choice(means, size=(200_000, n)).mean(axis=1)
        parts.append((resampled.var() * n / (n - 1), n - 1))
    total = sum(part for part, _ in parts)
    freedom = total**2 / sum(part**2 / f for part, f in parts)
    drawn = rng.standard_t(freedom, 1_000_000) * math.sqrt(total)
    low, high = interval(changes)
    assert (low + high) / 2 == pytest.approx(changes.mean())
    assert (high - low) / 2 == pytest.approx(np.quantile(drawn, 0.975), rel=0.03)


@pytest.mark.parametrize("seeds", [3, 5, 10])
@pytest.mark.parametrize(
    ("of_seeds", "of_tasks", "of_both"), [(1, 0, 0.5), (0, 1, 0.5), (0.3, 1, 1), (0, 0, 1)]
)
def test_the_interval_covers_the_truth_in_95_of_100_simulations(seeds, of_seeds, of_tasks, of_both):
    """True mean zero; deviations of seeds, of tasks and of both together."""
    rng, runs, tasks = np.random.default_rng(seeds), 800, 20
    covered = 0
    for _ in range(runs):
        changes = of_seeds * rng.standard_normal((seeds, 1)) + of_tasks * rng.standard_normal(tasks)
        low, high = interval(changes + of_both * rng.standard_normal((seeds, tasks)))
        covered += low <= 0 <= high
    assert 0.93 < covered / runs <= 1.0


def test_percentiles_of_resampled_seeds_would_be_too_narrow():
    """Why the interval is not that of a plain bootstrap."""
    rng, covered, runs = np.random.default_rng(0), 0, 400
    for _ in range(runs):
        values = rng.standard_normal(3)
        resampled = rng.choice(values, size=(1000, 3)).mean(axis=1)
        low, high = np.quantile(resampled, [0.025, 0.975])
        covered += low <= 0 <= high
    assert covered / runs < 0.85
