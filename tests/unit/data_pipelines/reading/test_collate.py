"""Batches: rows in task order, zeros where a label is missing, views by task."""

import numpy as np
import pytest
import torch

from data_pipelines.errors import DataError
from data_pipelines.reading.collate import Collate
from data_pipelines.reading.dataset import Sample, ShardDataset
from data_pipelines.reading.fields import LabelRequest
from data_pipelines.transforms import Geometry

IDS = [4, 3, -1, 0]  # no third; no depth; a filler; everything


@pytest.fixture
def dataset(shards):
    return ShardDataset(shards.root, shards.manifest, "train", shards.requests, Geometry((8, 12)))


@pytest.fixture
def batch(dataset):
    return Collate(dataset.labels)([dataset[0, sample_id] for sample_id in IDS])


def test_rows_are_in_task_order(batch):
    assert batch.tasks == ("t_number", "t_normal", "t_third", "t_depth", "t_parity")
    assert batch.scalar_tasks == ("t_number", "t_third", "t_parity")
    assert batch.keys == ("train4", "train3", "", "train0")
    assert batch.scalars.tolist() == [[1, 0.75, 0, 0], [0, 0, 0, 0], [0, 1, 0, 0]]
    assert batch.valid_rows.int().tolist() == [
        [1, 1, 0, 1],
        [1, 1, 0, 1],
        [0, 1, 0, 1],
        [1, 0, 0, 1],
        [1, 1, 0, 1],
    ]


def test_dtypes_and_shapes(batch):
    assert (batch.images.dtype, batch.images.shape) == (torch.uint8, (4, 3, 8, 12))
    assert (batch.scalars.dtype, batch.valid_rows.dtype) == (torch.float32, torch.bool)
    depth, normal = batch.dense["t_depth"], batch.dense["t_normal"]
    assert (depth.dtype, depth.shape) == (torch.uint16, (4, 1, 8, 12))
    assert (normal.dtype, normal.shape) == (torch.uint8, (4, 3, 8, 12))
    tensors = (batch.images, batch.scalars, batch.valid_rows, depth, normal)
    assert all(tensor.is_contiguous() for tensor in tensors)


def test_missing_dense_labels_are_zero(batch):
    assert batch.dense["t_depth"].float().amax((1, 2, 3)).tolist() == [304, 0, 0, 300]
    assert batch.dense["t_normal"][2].float().abs().sum() == 0


def test_views_by_task(batch):
    assert set(batch.labels) == set(batch.valid) == set(batch.tasks)
    assert batch.labels["t_third"].data_ptr() == batch.scalars[1].data_ptr()
    assert batch.labels["t_depth"] is batch.dense["t_depth"]
    assert batch.valid["t_depth"].tolist() == [True, False, False, True]


def test_a_dense_task_missing_in_the_whole_batch(dataset):
    batch = Collate(dataset.labels)([dataset[0, -1], dataset[0, -1]])
    assert batch.dense["t_normal"].shape == (2, 3, 8, 12)
    assert batch.dense["t_depth"].dtype == torch.uint8
    assert not batch.valid_rows.any()


def test_no_tasks_at_all(shards):
    dataset = ShardDataset(shards.root, shards.manifest, "train", [], Geometry((4, 4)))
    batch = Collate(dataset.labels)([dataset[0, 0], dataset[0, 1]])
    assert batch.scalars.shape == batch.valid_rows.shape == (0, 2)
    assert batch.labels == batch.valid == {}


def test_only_scalar_or_only_dense_tasks(shards):
    for request, rows in ((LabelRequest("a", "parity"), 1), (LabelRequest("a", "depth"), 0)):
        dataset = ShardDataset(shards.root, shards.manifest, "train", [request], Geometry((4, 4)))
        batch = Collate(dataset.labels)([dataset[0, 0]])
        assert batch.scalars.shape == (rows, 1)
        assert list(batch.labels) == ["a"]


def test_moving_keeps_names_and_moves_every_tensor(batch):
    moved = batch.to("meta")
    assert moved.tasks == batch.tasks
    assert moved.keys == batch.keys
    tensors = [moved.images, moved.scalars, moved.valid_rows, *moved.dense.values()]
    assert {tensor.device.type for tensor in tensors} == {"meta"}


def test_one_field_in_two_dtypes_is_refused(dataset):
    collate = Collate(dataset.labels)
    first, second = dataset[0, 0], dataset[0, 1]
    dense = {**second.dense, "t_depth": np.zeros((1, 8, 12), np.uint8)}
    other = Sample(second.key, second.image, second.scalars, dense, second.valid)
    with pytest.raises(DataError, match="field depth: one dtype is needed") as caught:
        collate([first, other])
    assert "uint16 in sample train0" in str(caught.value)
    assert "uint8 in sample train1" in str(caught.value)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_pinned_batches_reach_the_device(batch):
    moved = batch.pin_memory().to("cuda")
    assert moved.scalars.cpu().tolist() == batch.scalars.tolist()
    assert torch.equal(moved.dense["t_depth"].cpu(), batch.dense["t_depth"])
