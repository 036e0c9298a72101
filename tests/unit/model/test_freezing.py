import torch
from torch import nn

from model.encoders import build_encoder
from model.freezing import FrozenParts
from model.network import MultiTaskNetwork
from model.tasks.spec import TaskSpec


class Network(nn.Module):
    def __init__(self):
        super().__init__()
        self.frozen = FrozenParts()
        self.first = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3))
        self.second = nn.BatchNorm1d(3)

    def forward(self, x):
        return self.second(self.first(x))

    def train(self, mode=True):
        super().train(mode)
        self.frozen.eval()
        return self


def test_frozen_parts_have_no_gradient_and_keep_their_statistics_in_every_mode():
    network = Network()
    network.frozen = FrozenParts([network.first])
    network.train()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    for _ in range(2):  # also after an evaluation
        assert network.training and network.second.training and not network.first[1].training
        network(torch.rand(8, 3)).sum().backward()
        network.eval()
        assert not network.second.training
        network.train()
    assert all(p.grad is None for p in network.first.parameters())
    assert all(p.grad is not None for p in network.second.parameters())
    after = network.state_dict()
    for name, value in before.items():
        moves = name.startswith(("second.running", "second.num"))
        assert value.equal(after[name]) != moves, name


def test_nothing_is_frozen_from_the_start():
    network = Network()
    assert network.train() is network and all(part.training for part in network.modules())
    assert not any(part.training for part in network.eval().modules())


def test_a_network_freezes_its_parts_in_every_mode():
    encoder = build_encoder("residual64", 2, image_size=(16, 16), options={"channels": 8})
    network = MultiTaskNetwork([TaskSpec("a", "binary")], encoder, (16, 16))
    network.freeze([network.branches[1]])
    for _ in range(2):  # also after an evaluation
        assert network.training and network.branches[0].training
        assert not any(part.training for part in network.branches[1].modules())
        assert not any(p.requires_grad for p in network.branches[1].parameters())
        assert not any(part.training for part in network.eval().modules())
        network.train()
    assert all(p.requires_grad for p in network.branches[0].parameters())
