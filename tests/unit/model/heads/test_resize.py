import pytest
import torch
import torch.nn.functional as F
from torch import nn

from model.heads.resize import DenseHeads

ALL = slice(0, 6)


def reference_decoder(stack, row, maps):
    """Head `row` of a DenseHeads stack, made of single torch modules."""
    for stage in range(stack.num_stages):
        weight = getattr(stack, f"weight{stage}")[row]
        conv = nn.Conv2d(weight.shape[1], weight.shape[0], 3, padding=1, bias=False)
        norm = nn.GroupNorm(weight.shape[0] // 8, weight.shape[0])
        with torch.no_grad():
            conv.weight.copy_(weight)
            norm.weight.copy_(getattr(stack, f"gain{stage}")[row])
            norm.bias.copy_(getattr(stack, f"shift{stage}")[row])
        maps = nn.Upsample(scale_factor=2, mode="bilinear")(F.relu(norm(conv(maps))))
    last = nn.Conv2d(maps.shape[1], stack.weight.shape[1], 3, padding=1)
    with torch.no_grad():
        last.weight.copy_(stack.weight[row])
        last.bias.copy_(stack.bias[row])
    return F.interpolate(last(maps), size=stack.image_size, mode="bilinear")


def randomised(stack):
    with torch.no_grad():
        for parameter in stack.parameters():
            parameter.uniform_(-0.5, 0.5)
    return stack


@pytest.mark.parametrize("rows", [ALL, slice(2, 5), torch.tensor([0, 3, 5])])
@pytest.mark.parametrize("image_size", [(12, 16), (13, 15)])
def test_dense_heads_are_separate_decoders(rows, image_size):
    stack = randomised(DenseHeads(6, 5, 2, (16, 8), image_size))
    maps = torch.randn(3, 5, 3, 4)
    (prediction,) = stack([maps], [rows])
    chosen = torch.arange(6)[rows]
    assert prediction.shape == (len(chosen), 3, 2, *image_size)
    for position, row in enumerate(chosen):
        expected = reference_decoder(stack, int(row), maps)
        torch.testing.assert_close(prediction[position], expected, rtol=1e-4, atol=1e-5)


def test_decoder_without_stages():
    stack = randomised(DenseHeads(2, 5, 1, (), (6, 8)))
    (prediction,) = stack([torch.randn(3, 5, 3, 4)], [slice(0, 2)])
    assert prediction.shape == (2, 3, 1, 6, 8)


def test_a_sample_does_not_depend_on_the_batch():
    stack = DenseHeads(2, 5, 1, (8,), (6, 8)).train()
    maps = torch.randn(4, 5, 3, 4)
    (together,) = stack([maps], [slice(0, 2)])
    (alone,) = stack([maps[1:2]], [slice(0, 2)])
    torch.testing.assert_close(together[:, 1:2], alone)


@pytest.mark.parametrize("widths", [(12,), (0,), (8, -8)])
def test_widths_must_be_multiples_of_the_group_width(widths):
    with pytest.raises(ValueError, match=r"dense_widths is .*, must be positive multiples of 8"):
        DenseHeads(1, 4, 1, widths, (8, 8))
