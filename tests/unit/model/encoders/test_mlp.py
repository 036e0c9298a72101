"""The encoder of vectors, alone and in a network."""

import json

import pytest
import torch
from torch import nn

from model.encoders import build_encoder
from model.encoders.mlp import Mlp
from model.network import MultiTaskNetwork
from model.tasks.spec import TaskSpec

WIDTHS = [5, 7, 6, 3]


def linears(module):
    return [layer for layer in module.modules() if isinstance(layer, nn.Linear)]


def build(num_branches=2, **arguments):
    torch.manual_seed(0)
    options = {"widths": WIDTHS}
    return build_encoder("mlp", num_branches, image_size=(1, 1), options=options, **arguments)


@pytest.mark.parametrize("depth", [0, 1, 2])
def test_layers_with_relu_between_them(depth):
    torch.manual_seed(0)
    trunk, branch = Mlp({"widths": WIDTHS}, (1, 1)).build_parts(depth)
    assert [len(linears(part)) for part in (trunk, branch)] == [depth, 3 - depth]
    first, second, third = (*linears(trunk), *linears(branch))
    vectors = torch.randn(64, 5)
    hidden = (vectors @ first.weight.T + first.bias).clamp_min(0)
    hidden = (hidden @ second.weight.T + second.bias).clamp_min(0)
    expected = hidden @ third.weight.T + third.bias
    found = branch(trunk(vectors[:, :, None, None]))
    torch.testing.assert_close(found, expected[:, :, None, None])
    assert float(found.detach().min()) < 0, "no ReLU after the last layer"


def test_network_takes_floats_as_they_are():
    tasks = [TaskSpec("a", "binary"), TaskSpec("b", "regression")]
    encoder = build()
    assert (encoder.in_channels, encoder.channels, encoder.spatial) == (5, 3, (1, 1))
    network = MultiTaskNetwork(tasks, encoder, (1, 1))
    vectors = torch.randn(4, 5, 1, 1)
    found = network(vectors, network.select([(0, 1), (1, 0)]))["predictions"]
    features = network.branches[1](vectors)[:, :, 0, 0]
    stack = network.stacked_heads["binary_1_bce"]
    torch.testing.assert_close(found["a"], features @ stack.weight[1].T + stack.bias[1])
    with pytest.raises(ValueError, match=r"must be \(B, 5, 1, 1\)"):
        network(vectors[:, :4], network.select(network.heads))
    twin = MultiTaskNetwork.from_config(json.loads(json.dumps(network.config())))
    twin.load_state_dict(network.state_dict())
    again = twin(vectors, twin.select([(0, 1), (1, 0)]))["predictions"]
    assert all(torch.equal(found[name], again[name]) for name in found)


def test_faults():
    with pytest.raises(ValueError, match="options has 'depth', mlp knows only 'widths'"):
        Mlp({"widths": WIDTHS, "depth": 3}, (1, 1)).build_parts(0)
    for widths in (None, [4], [4, 0], [4, 2.5], "ab"):
        with pytest.raises(ValueError, match=r"widths is .*, must be two or more numbers above 0"):
            Mlp({"widths": widths}, (1, 1)).build_parts(0)
    with pytest.raises(ValueError, match="trunk_depth is 3, must be from 0 to 2 for an mlp"):
        Mlp({"widths": WIDTHS}, (1, 1)).build_parts(3)
