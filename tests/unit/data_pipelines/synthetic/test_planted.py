"""Planted problems: reproducible, balanced, and decided by the features of a task's group."""

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression

from data_pipelines.synthetic.planted import NUM_FEATURES, NUM_INPUTS, PlantedProblem


@pytest.fixture(scope="module")
def problem():
    return PlantedProblem(12, 3, seed=4)


def test_a_batch_is_a_function_of_seed_and_number(problem):
    batch, again = problem.batch(7, 16), PlantedProblem(12, 3, seed=4).batch(7, 16)
    assert torch.equal(batch.images, again.images) and torch.equal(batch.scalars, again.scalars)
    assert batch.keys == again.keys
    other = problem.batch(8, 16)
    assert not torch.equal(batch.images, other.images)
    assert not set(batch.keys) & set(other.keys)


def test_seeds_differ_in_inputs_groups_and_labels(problem):
    other = PlantedProblem(12, 3, seed=5)
    assert not torch.equal(problem.groups, other.groups)
    assert not torch.equal(problem.batch(0, 16).images, other.batch(0, 16).images)
    # The same inputs have other labels.
    inputs = problem.batch(0, 256).images[:, :, 0, 0]
    assert not torch.equal(problem._labels(inputs), other._labels(inputs))


def test_shapes_of_a_batch(problem):
    batch = problem.batch(0, 5)
    assert batch.tasks == batch.scalar_tasks == tuple(f"task{n:04d}" for n in range(12))
    assert batch.images.shape == (5, NUM_INPUTS, 1, 1) and batch.images.dtype == torch.float32
    assert batch.scalars.shape == (12, 5) and bool(batch.valid_rows.all()) and not batch.dense
    assert len(set(batch.keys)) == 5


def test_inputs_are_standard_normal_and_labels_balanced(problem):
    batch = problem.batch(0, 4096)
    assert float(batch.images.mean().abs()) < 0.01
    assert float(batch.images.std()) == pytest.approx(1, abs=0.01)
    assert batch.scalars.unique().tolist() == [0, 1]
    assert float((batch.scalars.mean(dim=1) - 0.5).abs().max()) < 0.05


def test_tasks_are_evenly_divided_over_the_groups():
    counts = torch.bincount(PlantedProblem(3000, 3, seed=0).groups, minlength=3)
    assert counts.tolist() == pytest.approx([1000] * 3, rel=0.1)


def accuracy(inputs, labels):
    half = len(inputs) // 2
    model = LogisticRegression(C=1e4, max_iter=500).fit(inputs[:half], labels[:half])
    return model.score(inputs[half:], labels[half:])


def test_the_features_of_its_group_decide_a_task_and_those_of_others_do_not(problem):
    batch = problem.batch(0, 3000)
    inputs, labels = batch.images[:, :, 0, 0].numpy(), batch.scalars.numpy()
    layers = zip(problem._first.numpy(), problem._second.numpy(), strict=True)
    features = [np.tanh(inputs @ first) @ second for first, second in layers]
    assert features[0].shape == (3000, NUM_FEATURES)
    for task, true_group in enumerate(problem.groups.tolist()):
        for group, values in enumerate(features):
            result = accuracy(values, labels[task])
            assert result > 0.97 if group == true_group else result < 0.8, (task, group, result)


def test_a_linear_model_of_the_inputs_is_not_enough(problem):
    batch = problem.batch(0, 3000)
    inputs = batch.images[:, :, 0, 0].numpy()
    scores = [accuracy(inputs, labels) for labels in batch.scalars[:4].numpy()]
    assert max(scores) < 0.95
