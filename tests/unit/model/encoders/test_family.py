"""The contract between `build_encoder` and an encoder's family."""

import pytest
import torch
from torch import nn

from dmtg import plugins
from model.encoders import build_encoder
from model.encoders.build import encoder_family
from model.encoders.family import EncoderFamily, Parts


class OneConv(EncoderFamily):
    """A convolution; it records the order of its calls."""

    calls = ()

    def __init__(self, options, image_size, pretrained=None):
        super().__init__(options, image_size, pretrained)
        self.options = {"channels": 4, **options}
        self.in_channels = self.options.get("inputs", 3)
        type(self).calls = ("init",)

    def build_parts(self, trunk_depth):
        type(self).calls += (trunk_depth,)
        return Parts(nn.Identity(), nn.Conv2d(self.in_channels, self.options["channels"], 3))


@pytest.fixture
def one_conv(monkeypatch):
    plugins.ENCODERS.names()
    monkeypatch.setitem(plugins.ENCODERS._entries, "one_conv", OneConv)


@pytest.mark.usefixtures("one_conv")
def test_facts_of_the_family_are_those_of_the_encoder():
    encoder = build_encoder("one_conv", 3, image_size=(8, 6), trunk_depth=2, options={"inputs": 5})
    assert OneConv.calls == ("init", 2, 2, 2)
    assert (encoder.in_channels, encoder.channels, encoder.spatial) == (5, 4, (6, 4))
    assert encoder.pool == "mean" and len(encoder.branches) == 3
    assert encoder.config == {
        "name": "one_conv",
        "image_size": [8, 6],
        "trunk_depth": 2,
        "options": {"channels": 4, "inputs": 5},
    }


@pytest.mark.usefixtures("one_conv")
def test_branches_are_built_one_after_the_other():
    torch.manual_seed(0)
    encoder = build_encoder("one_conv", 2, image_size=(8, 8))
    torch.manual_seed(0)
    for branch in encoder.branches:
        assert torch.equal(branch.weight, nn.Conv2d(3, 4, 3).weight)


@pytest.mark.usefixtures("one_conv")
def test_pretrained_weights_are_for_families_that_take_them():
    with pytest.raises(ValueError, match="pretrained is 'x', must be left out for one_conv"):
        encoder_family("one_conv", {}, (8, 8), "x")
    assert [n for n in plugins.ENCODERS.names() if plugins.ENCODERS[n].takes_pretrained] == [
        "backbone",
        "timm",
    ]
