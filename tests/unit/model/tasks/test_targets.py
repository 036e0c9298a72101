import pytest
import torch

from model.tasks.spec import TaskSpec
from model.tasks.targets import IGNORED, TargetBuilder

VALID = torch.tensor([[True, False, True]])


@pytest.mark.parametrize("dtype", [torch.uint8, torch.uint16, torch.int32])
def test_dense_values_are_scaled_from_their_stored_type(dtype):
    spec = TaskSpec("t", "dense_regression", channels=2, mean=(10.0, 20.0), scale=(2.0, 5.0))
    raw = torch.tensor([[[[30]], [[40]]]] * 3).to(dtype)
    targets = TargetBuilder([spec])([raw], VALID)
    assert targets.target.dtype == torch.float32
    assert targets.target[0, 0].flatten().tolist() == [10.0, 4.0]
    assert targets.target[0, 1].flatten().tolist() == [0.0, 0.0]


def test_pixels_at_or_above_the_limit_are_masked_and_zero():
    spec = TaskSpec("t", "dense_regression", mean=(1.0,), valid_below=100.0)
    free = TaskSpec("u", "dense_regression", mean=(1.0,))
    raw = torch.tensor([[[[99, 100, 65535]]]] * 3).to(torch.uint16)
    targets = TargetBuilder([spec, free])([raw, raw], VALID.expand(2, -1))
    assert targets.mask[0, 0, 0].tolist() == [True, False, False]
    assert targets.mask[0, 2, 0].tolist() == [True, False, False]
    assert not targets.mask[0, 1].any()
    assert targets.target[0, 0].flatten().tolist() == [98.0, 0.0, 0.0]
    assert targets.mask[1, 0].all() and not targets.mask[1, 1].any()


def test_ignored_and_unknown_class_ids_are_masked():
    specs = [
        TaskSpec("t", "dense_classification", channels=3, ignore_index=0),
        TaskSpec("u", "dense_classification", channels=3),
    ]
    raw = torch.tensor([[[[0, 1, 2, 3, 255]]]] * 3, dtype=torch.uint8)
    targets = TargetBuilder(specs)([raw, raw], VALID.expand(2, -1))
    assert targets.target[0, 0, 0].tolist() == [IGNORED, 1, 2, IGNORED, IGNORED]
    assert targets.target[1, 0, 0].tolist() == [0, 1, 2, IGNORED, IGNORED]
    assert not targets.mask[:, 1].any()


def test_scalars_each_with_their_own_scale():
    specs = [TaskSpec("a", "regression", mean=(1.0,), scale=(2.0,)), TaskSpec("b", "regression")]
    raw = torch.tensor([[5.0, float("nan"), 1.0], [7.0, 8.0, 9.0]])
    targets = TargetBuilder(specs)(raw, VALID.expand(2, -1))
    assert targets.target.tolist() == [[2.0, 0.0, 0.0], [7.0, 0.0, 9.0]]


def test_class_ids_of_scalars():
    raw = torch.tensor([[2.0, 1.0, 0.0]])
    targets = TargetBuilder([TaskSpec("a", "multiclass", channels=3)])(raw, VALID)
    assert targets.target.tolist() == [[2, IGNORED, 0]]
    assert targets.target.dtype == torch.long


def test_a_slice_selects_without_a_copy():
    raw = torch.zeros(4, 3)
    targets = TargetBuilder([TaskSpec(n, "binary") for n in "abcd"])(raw, VALID.expand(4, -1))
    part = targets.select(slice(1, 3))
    assert part.target.data_ptr() == targets.target[1].data_ptr()
    assert part.target.shape == (2, 3)
    assert targets.select(torch.tensor([3, 0])).valid.shape == (2, 3)
