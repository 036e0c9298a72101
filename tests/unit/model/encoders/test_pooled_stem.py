"""The stem in parts against the four torch modules that it stands for."""

import pytest
import torch
from torch import nn

from model.encoders import pooled_stem
from model.encoders.pooled_stem import PooledStem

CHANNELS = 6


@pytest.fixture(autouse=True)
def small_parts(monkeypatch):
    monkeypatch.setattr(pooled_stem, "_PART_BYTES", 8 * CHANNELS * 16 * 12 * 3)  # three images


def plain_stem():
    return nn.Sequential(
        nn.Conv2d(3, CHANNELS, 3, padding=1, bias=False),
        nn.BatchNorm2d(CHANNELS),
        nn.ReLU(),
        nn.MaxPool2d(3, stride=2),
    ).double()


def pair():
    """A stem with gains of both signs, and the same as torch modules."""
    torch.manual_seed(0)
    stem, plain = PooledStem(CHANNELS).double(), plain_stem()
    with torch.no_grad():
        stem[1].weight.copy_(torch.linspace(-1, 1, CHANNELS))
        stem[1].bias.uniform_(-0.5, 0.5)
    plain.load_state_dict(stem.state_dict())
    return stem, plain


def images(batch=8):
    generator = torch.Generator().manual_seed(1)
    return torch.randn(batch, 3, 16, 12, generator=generator, dtype=torch.float64) + 2


@pytest.mark.parametrize("batch", [1, 3, 8])
def test_training_pass_and_gradients(batch):
    stem, plain = pair()
    for _ in range(2):
        out, expected = stem(images(batch)), plain(images(batch))
        torch.testing.assert_close(out, expected)
        assert (expected > 0).any() and (expected == 0).any()
        into = torch.randn_like(expected)
        out.backward(into)
        expected.backward(into)
        assert stem.state_dict().keys() == plain.state_dict().keys()
        for name, parameter in stem.named_parameters():
            torch.testing.assert_close(parameter.grad, plain.get_parameter(name).grad)
        for name, buffer in stem.named_buffers():
            torch.testing.assert_close(buffer, plain.get_buffer(name))


def test_the_whole_map_is_not_kept():
    stem, plain = pair()

    def kept(module):
        sizes = {}

        def note(tensor):
            storage = tensor.untyped_storage()
            sizes[storage.data_ptr()] = storage.nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
            out = module(images())
        assert out.requires_grad
        return max(sizes.values())

    whole_map = 8 * CHANNELS * 8 * 16 * 12
    assert kept(plain) == whole_map
    assert kept(stem) <= whole_map / 2, "the images, of 3 channels"


def test_evaluation_uses_the_running_statistics():
    stem, plain = pair()
    for module in (stem, plain):
        module(images())
        module.eval()
    torch.testing.assert_close(stem(images()), plain(images()))


def test_a_gradient_of_the_images_is_right_too():
    stem, plain = pair()
    gradients = []
    for module in (stem, plain):
        leaf = images().requires_grad_()
        module(leaf).square().sum().backward()
        gradients.append(leaf.grad)
    torch.testing.assert_close(*gradients)


def test_lower_precision_takes_torch_modules():
    stem, plain = (module.float() for module in pair())
    with torch.autocast("cpu", torch.bfloat16):
        out, expected = stem(images().float()), plain(images().float())
    assert out.dtype == expected.dtype == torch.bfloat16
    assert torch.equal(out, expected)
