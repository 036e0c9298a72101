import torch

from model.tasks.decode import class_ids, natural
from model.tasks.spec import TaskSpec


def test_binary_probability_from_one_and_from_two_outputs():
    one = natural(TaskSpec("t", "binary"), torch.tensor([[0.0], [100.0]]))
    torch.testing.assert_close(one, torch.tensor([0.5, 1.0]))
    two = natural(TaskSpec("t", "binary", loss="cross_entropy"), torch.tensor([[1.0, 1.0]]))
    torch.testing.assert_close(two, torch.tensor([0.5]))


def test_multiclass_probabilities_sum_to_one():
    probabilities = natural(TaskSpec("t", "multiclass", channels=3), torch.randn(5, 3))
    assert probabilities.shape == (5, 3)
    torch.testing.assert_close(probabilities.sum(1), torch.ones(5))


def test_regression_undoes_scale_and_unit():
    spec = TaskSpec("t", "regression", mean=(1500.0,), scale=(1000.0,), unit_scale=1 / 512)
    torch.testing.assert_close(natural(spec, torch.tensor([[-1.0]])), torch.tensor([500 / 512]))


def test_dense_regression_per_channel():
    spec = TaskSpec(
        "t", "dense_regression", channels=2, mean=(1.0, 2.0), scale=(10.0, 20.0), unit_offset=0.5
    )
    values = natural(spec, torch.ones(1, 2, 2, 3))
    assert values.shape == (1, 2, 2, 3)
    assert values[0, :, 0, 0].tolist() == [11.5, 22.5]


def test_the_ignored_class_is_never_predicted():
    prediction = torch.tensor([9.0, 1.0, 2.0]).view(1, 3, 1, 1)
    for ignored, expected in ((0, 2), (None, 0), (255, 0)):
        spec = TaskSpec("t", "dense_classification", channels=3, ignore_index=ignored)
        assert natural(spec, prediction).tolist() == [[[expected]]]
    assert prediction[0, 0, 0, 0] == 9.0
    assert class_ids(spec, prediction).dtype == torch.long
