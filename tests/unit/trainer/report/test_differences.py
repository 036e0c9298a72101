from pathlib import Path

import numpy as np
import pytest
from scipy.stats import ttest_rel

from model.tasks.spec import TaskSpec
from tests.runs import run_config
from trainer.report.differences import compare_runs, interval
from trainer.report.run_facts import RunFacts

TASKS = (
    TaskSpec("pitch", "regression"),
    TaskSpec("sphere", "binary"),
    TaskSpec("segments", "dense_classification", channels=3),
)


def facts(recipe, seed, values, groups=(0, 1, 1), tasks=TASKS, branches=3):
    config = run_config(Path("out") / f"{recipe}-{seed}", branches, seed, recipe)
    metrics = dict(zip(("mae", "error", "miou"), values, strict=True))
    by_task = {
        task.name: {name: value}
        for task, (name, value) in zip(TASKS, metrics.items(), strict=True)
        if task in tasks
    }
    return RunFacts(f"{recipe}-{seed}", config, tuple(tasks), list(groups), by_task, {})


REFERENCE = [(1.0, 0.2, 0.4), (1.2, 0.3, 0.5), (1.1, 0.4, 0.45)]
OTHER = [(0.8, 0.2, 0.5), (1.1, 0.25, 0.5), (0.7, 0.45, 0.6)]


def both():
    runs = [facts("multitask", seed, values) for seed, values in enumerate(REFERENCE)]
    return runs + [facts("affinity", seed, values) for seed, values in enumerate(OTHER)]


def test_intervals_are_those_of_the_paired_t_test():
    found = compare_runs(both())
    (pair,) = found["pairs"]
    assert (found["reference"], pair["name"], pair["seeds"]) == ("multitask", "affinity", [0, 1, 2])
    for column, name in enumerate(("pitch", "sphere", "segments")):
        test = ttest_rel([v[column] for v in OTHER], [v[column] for v in REFERENCE])
        low, high = test.confidence_interval(0.95)
        entry = pair["tasks"][name]
        assert entry["mean"] == pytest.approx((low + high) / 2, rel=1e-4, abs=1e-12)
        assert entry["half"] == pytest.approx((high - low) / 2, rel=1e-4)


def test_the_mean_change_is_that_of_each_seed_and_positive_where_better():
    (pair,) = compare_runs(both())["pairs"]
    changes = [
        100 * np.mean([(r[0] - o[0]) / r[0], (r[1] - o[1]) / r[1], (o[2] - r[2]) / r[2]])
        for o, r in zip(OTHER, REFERENCE, strict=True)
    ]
    assert pair["change"] == pytest.approx(np.mean(changes), rel=1e-4)
    assert pair["change_half"] == pytest.approx(interval(changes)[1], rel=1e-4)
    assert pair["change_tasks"] == 3


def test_only_common_seeds_and_tasks_are_paired():
    runs = [
        facts("multitask", 0, REFERENCE[0]),
        facts("multitask", 5, REFERENCE[1]),
        facts("affinity", 5, OTHER[1], tasks=TASKS[:2], groups=(0, 1)),
    ]
    found = compare_runs(runs)
    (pair,) = found["pairs"]
    assert pair["seeds"] == [5] and found["left_out"] == ["segments"]
    assert pair["tasks"]["pitch"] == {"mean": pytest.approx(-0.1), "half": None, "seeds": 1}
    assert set(pair["tasks"]) == {"pitch", "sphere"}


def test_agreement_of_the_groupings():
    """Three tasks as 1+2 and as 2+1 agree less than by chance."""
    runs = [
        facts("affinity", 0, OTHER[0], groups=(0, 1, 1)),
        facts("affinity", 1, OTHER[1], groups=(2, 0, 0)),
        facts("affinity", 2, OTHER[2], groups=(1, 1, 0)),
    ]
    found = compare_runs(runs)
    assert found["pairs"] == [] and len(found["settings"]) == 1
    assert found["agreement"] == [[1.0, 1.0, -0.5], [1.0, 1.0, -0.5], [-0.5, -0.5, 1.0]]


def test_settings_are_named_by_what_differs():
    runs = [facts("affinity", seed, OTHER[0], branches=b) for b in (3, 4) for seed in (0, 1)]
    found = compare_runs(runs)
    assert [s["name"] for s in found["settings"]] == ["model.branches=3", "model.branches=4"]
    assert [s["runs"] for s in found["settings"]] == [[0, 1], [2, 3]]
    assert found["pairs"][0]["seeds"] == [0, 1]


def test_a_missing_metric_leaves_the_task_out():
    runs = [facts("multitask", 0, REFERENCE[0]), facts("affinity", 0, (np.nan, 0.1, 0.5))]
    (pair,) = compare_runs(runs)["pairs"]
    assert set(pair["tasks"]) == {"sphere", "segments"}
