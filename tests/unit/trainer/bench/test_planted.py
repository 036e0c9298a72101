"""Planted problems through the trainer: data of a run, configuration, results."""

import json
from itertools import islice

import pytest
import torch

from data_pipelines.synthetic.planted import PlantedProblem
from trainer.bench.planted import (
    PlantedData,
    PlantedResult,
    as_json,
    measure_grouping,
    planted_config,
    write_groups,
)
from trainer.errors import UserError
from trainer.recipes.groups import read_groups

PROBLEM = PlantedProblem(8, 2, seed=3)


def data(tmp_path, *overrides):
    config = planted_config(tmp_path, 2, 3, "evidence", 6, 32, overrides)
    return PlantedData(PROBLEM, config)


def keys(batches):
    return [batch.keys for batch in batches]


@pytest.mark.parametrize("world_size", [1, 2])
@pytest.mark.parametrize("accumulation", [1, 2])
def test_batches_of_all_ranks_and_parts_are_different_and_make_up_the_global_batch(
    tmp_path, world_size, accumulation
):
    own = data(tmp_path, f"optim.gradient_accumulation_steps={accumulation}")
    place = {"world_size": world_size}
    ranks = [list(own.train_batches(0, 3, rank=rank, **place)) for rank in range(world_size)]
    assert [len(batches) for batches in ranks] == [3 * accumulation] * world_size
    sizes = {len(batch.images) for batches in ranks for batch in batches}
    assert sizes == {32 // world_size // accumulation}
    seen = [key for batches in ranks for own_keys in keys(batches) for key in own_keys]
    assert len(set(seen)) == 3 * 32
    # A run that goes on from the second step reads what the whole run read.
    later = list(own.train_batches(1, 3, rank=0, **place))
    assert keys(later) == keys(ranks[0][accumulation:])
    assert torch.equal(later[0].images, ranks[0][accumulation].images)


def test_evaluation_reads_the_same_samples_whatever_the_ranks(tmp_path):
    own = data(tmp_path)
    whole = [key for batch in own.eval_batches(rank=0, world_size=1) for key in batch.keys]
    halves = [
        key
        for rank in range(2)
        for batch in own.eval_batches(rank=rank, world_size=2)
        for key in batch.keys
    ]
    assert len(whole) == len(set(whole)) == own.eval_samples and set(halves) == set(whole)
    trained = islice(own.train_batches(0, 10**6, rank=0, world_size=1), 50)
    assert not {key for batch in trained for key in batch.keys} & set(whole)


def test_a_problem_has_tasks_but_no_epochs(tmp_path):
    own = data(tmp_path)
    assert [task.name for task in own.tasks] == list(PROBLEM.tasks)
    assert {task.kind for task in own.tasks} == {"binary"} and own.train_samples is None
    with pytest.raises(UserError, match=r"run\.epochs: a planted problem has no end, give run\.st"):
        own.steps_per_epoch()


def test_configuration(tmp_path):
    config = planted_config(tmp_path, 8, 3, "evidence", 100, 64, ["optim.lr=0.01"])
    assert config.model.encoder.options == {"widths": [32, 64, 4]}
    assert config.pruning.threshold == 0.05 and config.pruning.end == 0.8
    assert (config.run.seed, config.run.steps, config.optim.lr) == (3, 100, 0.01)
    assert planted_config(tmp_path, 40, 3, "evidence", 9, 64).pruning.threshold < 1 / 40
    published = planted_config(tmp_path, 2, 0, "published", 100, 64)
    assert published.pruning.begin == published.pruning.end == 1.0
    assert (published.grouping.lr, published.grouping.temperature.final) == (1e-3, 2.5)
    with pytest.raises(UserError, match=r"grouping\.recipe: found 'best'; .*affinity"):
        planted_config(tmp_path, 2, 0, "best", 100, 64)


def test_true_groups_as_a_file(tmp_path):
    path = write_groups(tmp_path / "below" / "true.json", PROBLEM)
    groups = read_groups(path, PROBLEM.tasks)
    found = {task: number for number, group in enumerate(groups) for task in group}
    pairs = [(n, m) for n in range(8) for m in range(8)]
    for n, m in pairs:
        same = PROBLEM.groups[n] == PROBLEM.groups[m]
        assert (found[n] == found[m]) == bool(same)


@pytest.mark.usefixtures("forget_accelerate")
def test_multitask_is_one_group_and_does_worse_than_the_true_grouping():
    """The ARI of one group for all is zero; both trainings have the same length and data."""
    [result] = measure_grouping(
        16, 4, 1, [2], "multitask", steps=150, batch=128, progress=False,
        overrides=["optim.lr=0.005"],
    )  # fmt: skip
    assert (result.seed, result.branches, result.ari) == (2, 1, 0.0)
    assert result.ratio == result.error / result.true_error
    assert 0.05 < result.true_error < 0.5 and 0.05 < result.error < 0.5 and result.seconds > 0


@pytest.mark.usefixtures("forget_accelerate")
def test_the_true_grouping_against_itself(tmp_path):
    groups = write_groups(tmp_path / "true.json", PlantedProblem(8, 2, seed=3))
    [result] = measure_grouping(
        8, 2, 2, [3], "fixed", steps=20, batch=32, progress=False,
        overrides=[f"grouping.groups={groups}"],
    )  # fmt: skip
    assert (result.ari, result.ratio, result.branches) == (1.0, 1.0, 2)


def test_more_groups_than_tasks():
    with pytest.raises(UserError, match="--groups is 9, must be at most --tasks, 8"):
        measure_grouping(8, 9, 2, [0], "evidence", progress=False)


def test_json_has_the_means():
    results = [
        PlantedResult(seed, error, 0.1, error / 0.1, ari, branches, seconds)
        for seed, error, ari, branches, seconds in ((4, 0.2, 1.0, 3, 5.0), (5, 0.1, 0.5, 2, 7.0))
    ]
    found = json.loads(json.dumps(as_json(results)))
    assert found["seeds"][1] == {
        "seed": 5, "error": 0.1, "true_error": 0.1, "ratio": 1.0, "ari": 0.5,
        "branches": 2, "seconds": 7.0,
    }  # fmt: skip
    expected = {
        "error": 0.15, "true_error": 0.1, "ratio": 1.5, "ari": 0.75, "branches": 2.5, "seconds": 6.0
    }  # fmt: skip
    assert found["mean"] == pytest.approx(expected)
