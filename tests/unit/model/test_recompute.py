"""A branch that is computed again in the backward pass against one that keeps everything."""

import copy

import pytest
import torch
from torch import nn

from model.encoders import build_encoder
from model.network import MultiTaskNetwork
from model.recompute import recomputed
from model.subset import subset
from model.tasks.spec import TaskSpec


def branch():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout(0.5), nn.Conv2d(4, 2, 3)
    )


def test_output_gradients_and_statistics_are_the_same():
    inputs = torch.randn(5, 3, 8, 8)
    plain = branch()
    again = copy.deepcopy(plain)
    outputs = []
    for module, run in ((plain, lambda m, x: m(x)), (again, recomputed)):
        for step in range(3):
            torch.manual_seed(step)
            leaf = inputs.clone().requires_grad_()
            out = run(module, leaf)
            out.square().sum().backward()
        outputs.append((out, leaf.grad))
    for own, expected in zip(outputs[1], outputs[0], strict=True):
        assert torch.equal(own, expected)
    for name, value in plain.state_dict().items():
        assert torch.equal(again.state_dict()[name], value), name
    for name, parameter in plain.named_parameters():
        assert torch.equal(again.get_parameter(name).grad, parameter.grad), name
    assert int(again[1].num_batches_tracked) == 3


@pytest.mark.parametrize("trunk_depth", [0, 1])
def test_a_network_keeps_less_and_learns_the_same(trunk_depth):
    torch.manual_seed(0)
    encoder = build_encoder(
        "residual64", 2, image_size=(64, 64), trunk_depth=trunk_depth, options={"channels": 4}
    )
    tasks = [TaskSpec(name, "binary") for name in "abc"]
    network = MultiTaskNetwork(tasks, encoder, (64, 64))
    images = torch.randint(256, (4, 3, 64, 64), dtype=torch.uint8)
    labels = torch.randint(2, (3, 4)).float()
    states, kept = [], []
    for activation_checkpointing in (False, True):
        own = subset(network, network.heads)
        own.activation_checkpointing = activation_checkpointing
        targets = own.labels.targets(labels, {}, torch.ones(3, 4, dtype=torch.bool))
        storages = {}

        def note(tensor, storages=storages):
            storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
            losses = own(images, own.select(own.heads), targets)["losses"]
        losses.sum().backward()
        kept.append(sum(storages.values()))
        gradients = {f"{name}.grad": p.grad for name, p in own.named_parameters()}
        states.append({**own.state_dict(), **gradients})
    for name, value in states[0].items():
        assert torch.equal(states[1][name], value), name
    assert kept[1] < 0.6 * kept[0]


def test_evaluation_is_not_checkpointed():
    encoder = build_encoder("residual64", 1, image_size=(64, 64), options={"channels": 4})
    network = MultiTaskNetwork([TaskSpec("a", "binary")], encoder, (64, 64)).eval()
    images = torch.randint(256, (2, 3, 64, 64), dtype=torch.uint8)
    selection = network.select(network.heads)
    expected = network(images, selection)["predictions"]["a"]
    network.activation_checkpointing = True
    assert torch.equal(network(images, selection)["predictions"]["a"], expected)
