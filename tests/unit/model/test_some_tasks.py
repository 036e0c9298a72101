"""Loading some tasks of an exported model: equal predictions, and nothing else is read."""

import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from model.bundle import BundleError, load_pruned, save_bundle
from model.bundle_file import read_header, read_tensors
from model.encoders import build_encoder
from model.network import MultiTaskNetwork
from model.subset import TensorPart
from model.tasks.spec import TaskSpec

SIZE = (16, 16)
TASKS = [
    *(TaskSpec(f"binary {number}", "binary") for number in range(7)),
    TaskSpec("depth", "dense_regression"),
    TaskSpec("age", "regression"),
    TaskSpec("edges", "dense_regression"),
]
BRANCH = [0, 2, 0, 1, 2, 0, 2, 1, 0, 2]  # of each task
IMAGES = torch.arange(2 * 3 * 256).remainder(251).view(2, 3, *SIZE).to(torch.uint8)


@pytest.fixture(scope="module", params=["resize", "deconv"])
def path(request, tmp_path_factory):
    torch.manual_seed(0)
    encoder = build_encoder(
        "residual64", 3, image_size=SIZE, trunk_depth=1, options={"channels": 8}
    )
    heads = list(enumerate(BRANCH))
    network = MultiTaskNetwork(
        TASKS, encoder, SIZE, heads=heads, dense_widths=(8,), decoder=request.param
    )
    network(IMAGES, network.select(network.heads))  # moves the running statistics
    file = tmp_path_factory.mktemp("model") / "model.safetensors"
    save_bundle(file, network, {"step": 7})
    return file


def names(*numbers):
    return [TASKS[number].name for number in numbers]


@pytest.mark.parametrize(
    "chosen", [(0,), (3, 7), (8,), (6, 1), (0, 2, 5, 9), (9, 7, 1), tuple(range(10))]
)
def test_predictions_are_those_of_the_whole_model(path, chosen):
    whole, some = load_pruned(path), load_pruned(path, tasks=names(*chosen))
    expected, found = whole(IMAGES), some(IMAGES)
    assert list(found) == names(*sorted(chosen))  # in the order of the file
    for name, value in found.items():
        torch.testing.assert_close(value, expected[name], rtol=1e-5, atol=1e-6)
    branches = sorted({BRANCH[number] for number in chosen})
    assert some.groups == [
        [name for name in whole.groups[branch] if name in found] for branch in branches
    ]
    assert some.network.num_branches == len(branches) and some.metadata == {"step": 7}
    saved = path.with_name("some.safetensors")
    save_bundle(saved, some.network, some.metadata)
    assert saved.stat().st_size <= path.stat().st_size
    again = load_pruned(saved)(IMAGES)
    assert all(torch.equal(again[name], value) for name, value in found.items())


def test_tensors_of_other_branches_and_heads_are_not_read(path, tmp_path):
    """A value that is not finite is an error wherever it is read."""
    tensors, header = load_file(path), read_header(path)
    rows = {number: row for row, number in enumerate([0, 2, 5, 3, 1, 4, 6])}  # by branch, task
    for name, tensor in tensors.items():
        if not tensor.is_floating_point():
            continue
        if name.startswith("branches.") and not name.startswith("branches.1."):
            tensor.fill_(torch.nan)
        if name.startswith("stacked_heads.binary"):
            tensor[[row for number, row in rows.items() if number != 3]] = torch.nan
        if name.startswith("stacked_heads.regression"):
            tensor.fill_(torch.nan)
        if name.startswith("stacked_heads.dense_regression"):
            tensor[1] = torch.nan  # of edges, whose branch is the last
    damaged = tmp_path / "damaged.safetensors"
    save_file(tensors, damaged, metadata={"dmtg": json.dumps(header.description)})
    found = load_pruned(damaged, tasks=names(3, 7))(IMAGES)
    expected = load_pruned(path)(IMAGES)
    for name in names(3, 7):
        torch.testing.assert_close(found[name], expected[name], rtol=1e-5, atol=1e-6)
    for others in (names(0), names(8), names(9), None):
        with pytest.raises(BundleError, match="are NaN or infinite"):
            load_pruned(damaged, tasks=others)


def test_rows_are_read_as_they_are_stored(tmp_path):
    stored = torch.arange(60.0).view(10, 3, 2)
    save_file({"a": stored}, tmp_path / "file")
    rows = (0, 1, 2, 5, 7, 8)
    read = read_tensors(tmp_path / "file", {"b": TensorPart("a", rows), "c": TensorPart("a")})
    assert np.array_equal(read["b"], stored.numpy()[list(rows)])
    assert torch.equal(read["c"], stored)


@pytest.mark.parametrize(
    ("tasks", "message"),
    [
        (["dept"], "has no task 'dept'; its 10 tasks are binary 0, .*did you mean 'depth'"),
        (["binary 0", "zzz"], "has no task 'zzz'; its 10 tasks are binary 0"),
        ([], r"tasks is \[\], must be a list of names"),
        ("depth", "tasks is 'depth', must be a list of names"),
    ],
)
def test_tasks_that_are_not_in_the_file(path, tasks, message):
    with pytest.raises(BundleError, match=f"model.safetensors: {message}"):
        load_pruned(path, tasks=tasks)
