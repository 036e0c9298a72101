import pytest
import torch
import torch.nn.functional as F
from torch import nn

from model.heads.linear_and_resize import DenseHeads, LinearHeads

ALL = slice(0, 6)


def reference_decoder(bank, row, maps):
    """Head `row` of a DenseHeads bank, made of single torch modules."""
    for stage in range(bank.num_stages):
        weight = getattr(bank, f"weight{stage}")[row]
        conv = nn.Conv2d(weight.shape[1], weight.shape[0], 3, padding=1, bias=False)
        norm = nn.GroupNorm(weight.shape[0] // 8, weight.shape[0])
        with torch.no_grad():
            conv.weight.copy_(weight)
            norm.weight.copy_(getattr(bank, f"gain{stage}")[row])
            norm.bias.copy_(getattr(bank, f"shift{stage}")[row])
        maps = nn.Upsample(scale_factor=2, mode="bilinear")(F.relu(norm(conv(maps))))
    last = nn.Conv2d(maps.shape[1], bank.weight.shape[1], 3, padding=1)
    with torch.no_grad():
        last.weight.copy_(bank.weight[row])
        last.bias.copy_(bank.bias[row])
    return F.interpolate(last(maps), size=bank.image_size, mode="bilinear")


def randomised(bank):
    with torch.no_grad():
        for parameter in bank.parameters():
            parameter.uniform_(-0.5, 0.5)
    return bank


@pytest.mark.parametrize("rows", [ALL, slice(2, 5), torch.tensor([0, 3, 5])])
def test_linear_heads_are_separate_linear_layers(rows):
    bank = randomised(LinearHeads(6, 7, 3))
    features = torch.randn(4, 7)
    chosen = torch.arange(6)[rows]
    (prediction,) = bank([features], [rows])
    assert prediction.shape == (len(chosen), 4, 3)
    for position, row in enumerate(chosen):
        expected = features @ bank.weight[row].T + bank.bias[row]
        torch.testing.assert_close(prediction[position], expected)


@pytest.mark.parametrize("rows", [ALL, slice(2, 5), torch.tensor([0, 3, 5])])
@pytest.mark.parametrize("image_size", [(12, 16), (13, 15)])
def test_dense_heads_are_separate_decoders(rows, image_size):
    bank = randomised(DenseHeads(6, 5, 2, (16, 8), image_size))
    maps = torch.randn(3, 5, 3, 4)
    (prediction,) = bank([maps], [rows])
    chosen = torch.arange(6)[rows]
    assert prediction.shape == (len(chosen), 3, 2, *image_size)
    for position, row in enumerate(chosen):
        expected = reference_decoder(bank, int(row), maps)
        torch.testing.assert_close(prediction[position], expected, rtol=1e-4, atol=1e-5)


def test_decoder_without_stages():
    bank = randomised(DenseHeads(2, 5, 1, (), (6, 8)))
    (prediction,) = bank([torch.randn(3, 5, 3, 4)], [slice(0, 2)])
    assert prediction.shape == (2, 3, 1, 6, 8)


def test_a_sample_does_not_depend_on_the_batch():
    bank = DenseHeads(2, 5, 1, (8,), (6, 8)).train()
    maps = torch.randn(4, 5, 3, 4)
    (together,) = bank([maps], [slice(0, 2)])
    (alone,) = bank([maps[1:2]], [slice(0, 2)])
    torch.testing.assert_close(together[:, 1:2], alone)


@pytest.mark.parametrize(
    "bank", [LinearHeads(6, 7, 3), DenseHeads(6, 7, 3, (8,), (4, 4))], ids=["linear", "dense"]
)
def test_every_parameter_is_stacked_and_cut_rows_compute_the_same(bank):
    assert {parameter.shape[0] for parameter in bank.parameters()} == {6}
    features = torch.randn(2, 7) if isinstance(bank, LinearHeads) else torch.randn(2, 7, 2, 2)
    rows = torch.tensor([1, 4])
    small = type(bank)(2, 7, 3, *(() if isinstance(bank, LinearHeads) else ((8,), (4, 4))))
    small.load_state_dict({k: v.index_select(0, rows) for k, v in bank.state_dict().items()})
    torch.testing.assert_close(small([features], [slice(0, 2)])[0], bank([features], [rows])[0])


def test_branches_without_rows_are_skipped():
    bank = LinearHeads(2, 3, 1)
    predictions = bank([None, torch.ones(1, 3), torch.ones(1, 3)], [None, slice(0, 2), None])
    assert [p is None for p in predictions] == [True, False, True]


@pytest.mark.parametrize("widths", [(12,), (0,), (8, -8)])
def test_widths_must_be_multiples_of_the_group_width(widths):
    with pytest.raises(ValueError, match=r"dense_widths is .*, must be positive multiples of 8"):
        DenseHeads(1, 4, 1, widths, (8, 8))
