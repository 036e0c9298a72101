import pytest
import torch

from model.heads.linear import LinearHeads


@pytest.mark.parametrize("rows", [slice(0, 6), slice(2, 5), torch.tensor([0, 3, 5])])
def test_linear_heads_are_separate_linear_layers(rows):
    stack = LinearHeads(6, 7, 3)
    torch.nn.init.uniform_(stack.bias, -0.5, 0.5)
    features = torch.randn(4, 7)
    chosen = torch.arange(6)[rows]
    (prediction,) = stack([features], [rows])
    assert prediction.shape == (len(chosen), 4, 3)
    for position, row in enumerate(chosen):
        expected = features @ stack.weight[row].T + stack.bias[row]
        torch.testing.assert_close(prediction[position], expected)


def test_branches_without_rows_are_skipped():
    stack = LinearHeads(2, 3, 1)
    predictions = stack([None, torch.ones(1, 3), torch.ones(1, 3)], [None, slice(0, 2), None])
    assert [p is None for p in predictions] == [True, False, True]
