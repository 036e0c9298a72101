"""The contract between `build_stacked_heads` and a dense decoder."""

import pytest
import torch
from torch import nn

from dmtg import plugins
from model.encoders import build_encoder
from model.heads.dense_decoder import DenseDecoder
from model.heads.stack import build_stacked_heads
from model.tasks.spec import TaskSpec

DEPTH = TaskSpec("depth", "dense_regression", channels=2)


class Recorded(DenseDecoder):
    """Keeps its arguments."""

    def __init__(self, num_heads, channels, outputs, image_size, gain=1):
        super().__init__()
        self.arguments = (num_heads, channels, outputs, image_size, gain)
        self.weight = nn.Parameter(torch.zeros(num_heads, outputs, channels))


class Widths(DenseDecoder):
    """Takes `model.dense_widths`."""

    takes_dense_widths = True

    def __init__(self, widths, **arguments):
        super().__init__()
        self.arguments = arguments
        self.widths = widths


class Transposed(DenseDecoder):
    """Has the heads as its last axis."""

    def __init__(self, num_heads, channels, outputs, **arguments):
        super().__init__()
        self.arguments = arguments
        self.weight = nn.Parameter(torch.zeros(channels, outputs, num_heads))


@pytest.fixture
def build(monkeypatch):
    plugins.DENSE_DECODERS.names()
    for entry in (Recorded, Widths, Transposed):
        monkeypatch.setitem(plugins.DENSE_DECODERS._entries, entry.__name__.lower(), entry)
    encoder = build_encoder("residual64", 1, image_size=(16, 16), options={"channels": 8})

    def make(decoder, options=None, spec=DEPTH):
        return build_stacked_heads(spec, 3, encoder, (16, 16), decoder, (8,), options)

    return make


def test_arguments(build):
    assert build("recorded").arguments == (3, 8, 2, (16, 16), 1)
    assert build("recorded", {"gain": 7}).arguments[-1] == 7
    assert build("widths").widths == (8,)


def test_an_unknown_option_is_an_error(build):
    with pytest.raises(ValueError, match=r"model\.decoder_options: .*'size' for recorded"):
        build("recorded", {"size": 7})
    with pytest.raises(ValueError, match=r"model\.decoder_options: .*'size' for deconv"):
        build("deconv", {"size": 7})


def test_heads_are_the_leading_axis(build):
    message = r"decoder transposed: weight has shape \(8, 2, 3\), must have the 3 heads as its lead"
    with pytest.raises(ValueError, match=message):
        build("transposed")


def test_scalar_tasks_have_no_decoder(build):
    assert not isinstance(build("recorded", spec=TaskSpec("cube", "binary")), DenseDecoder)
