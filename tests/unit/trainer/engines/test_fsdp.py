"""FSDP2 on two real processes over gloo, against one process on both their batches."""

import copy

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import nn
from torch.distributed.tensor import DTensor

from trainer.engines.fsdp import hidden_from_accelerate, shard, sharded_like, shards, whole
from trainer.errors import UserError


class Network(nn.Module):
    """Sizes that two do not divide, a trunk without parameters, and a part that is not trained."""

    def __init__(self):
        super().__init__()
        self.trunk = nn.Identity()
        self.branches = nn.ModuleList([nn.Linear(5, 7), nn.Linear(5, 7)])
        self.stacked_heads = nn.ModuleDict({"binary": nn.Linear(7, 3)})
        self.branches[1].bias.requires_grad_(False)

    def forward(self, x):
        maps = [branch(self.trunk(x)).relu() for branch in self.branches]
        return self.stacked_heads["binary"](sum(maps))


def batch(step, rank):
    return torch.randn(4, 5, generator=torch.Generator().manual_seed(10 * step + rank))


def train(network, optimizer, steps, ranks):
    """Steps on the mean over the batches of these ranks."""
    for step in steps:
        losses = [network(batch(step, rank)).square().mean() for rank in ranks]
        torch.stack(losses).mean().backward()
        nn.utils.clip_grad_norm_(network.parameters(), 0.1)
        optimizer.step()
        optimizer.zero_grad()


def adam(network):
    return torch.optim.AdamW([p for p in network.parameters() if p.requires_grad], lr=1e-2)


def moments(network, optimizer):
    """By name; a collective call."""
    return {
        (name, moment): whole(optimizer.state[p][moment]).clone()
        for name, p in network.named_parameters()
        if p.requires_grad
        for moment in ("exp_avg", "exp_avg_sq")
    }


def weights(network):
    return {name: whole(p.detach()).clone() for name, p in network.named_parameters()}


def in_a_process(rank, folder):
    dist.init_process_group("gloo", f"file://{folder}/store", rank=rank, world_size=2)
    torch.set_num_threads(1)
    torch.manual_seed(0)
    first = Network()
    second = copy.deepcopy(first)
    shard(first, "cpu")
    kinds = {name: type(p) for name, p in first.named_parameters()}
    optimizer = adam(first)
    train(first, optimizer, range(3), (rank,))
    middle = weights(first), moments(first, optimizer)
    train(first, optimizer, range(3, 5), (rank,))
    end = weights(first), moments(first, optimizer)

    second.load_state_dict(middle[0])
    shard(second, "cpu")
    continued = adam(second)
    for name, p in second.named_parameters():
        if p.requires_grad:
            values = {m: middle[1][name, m] for m in ("exp_avg", "exp_avg_sq")}
            continued.state[p] = {
                "step": torch.tensor(3.0), **{m: sharded_like(v, p) for m, v in values.items()}
            }  # fmt: skip
    again = weights(second), moments(second, continued)
    local = {name: p.to_local().numel() for name, p in second.named_parameters()}
    train(second, continued, range(3, 5), (rank,))
    resumed = weights(second), moments(second, continued)
    found = {"middle": middle, "end": end, "again": again, "resumed": resumed}
    torch.save(
        {"local": local, "sharded": set(kinds.values()) == {DTensor}, **found},
        f"{folder}/{rank}.pt",
    )
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ranks")
    mp.spawn(in_a_process, (str(folder),), nprocs=2)
    return [torch.load(folder / f"{rank}.pt", weights_only=False) for rank in (0, 1)]


def assert_equal(found, expected):
    for now, then in zip(found, expected, strict=True):
        assert now.keys() == then.keys()
        for name, value in then.items():
            assert torch.equal(now[name], value), name


def test_every_parameter_is_cut_in_two(ranks):
    assert ranks[0]["sharded"] and ranks[1]["sharded"]
    first, second = (rank["local"] for rank in ranks)
    assert (first["branches.0.weight"], second["branches.0.weight"]) == (20, 15)
    assert {n: first[n] + second[n] for n in first} == {
        n: p.numel() for n, p in Network().named_parameters()
    }


def test_every_rank_reads_the_same_whole_state(ranks):
    for moment in ("middle", "end"):
        assert_equal(ranks[0][moment], ranks[1][moment])


def test_sharded_training_equals_that_of_one_process(ranks):
    torch.manual_seed(0)
    network = Network()
    optimizer = adam(network)
    train(network, optimizer, range(5), (0, 1))
    found, expected = ranks[0]["end"], (weights(network), moments(network, optimizer))
    for now, then in zip(found, expected, strict=True):
        assert now.keys() == then.keys()
        for name, value in then.items():
            torch.testing.assert_close(now[name], value, rtol=1e-5, atol=1e-7)


def test_state_written_into_new_shards_is_read_back_and_continues_exactly(ranks):
    for rank in ranks:
        assert_equal(rank["again"], rank["middle"])
        assert_equal(rank["resumed"], rank["end"])


def test_what_is_not_sharded_is_left_alone():
    value = torch.arange(3.0)
    assert whole(value) is value and sharded_like(value, nn.Parameter(torch.zeros(3))) is value


@pytest.mark.parametrize(("said", "expected"), [("true", True), ("True", True), ("false", False)])
def test_the_launcher_asks(said, expected):
    assert shards({"ACCELERATE_USE_FSDP": said, "FSDP_VERSION": "2"}) is expected
    assert not shards({})


@pytest.mark.parametrize(
    ("variable", "value"), [("FSDP_VERSION", "1"), ("FSDP_OFFLOAD_PARAMS", "true")]
)
def test_what_cannot_be_is_refused(variable, value):
    with pytest.raises(
        UserError, match=rf"fsdp_config\.{variable.lower()}: found {value}; allowed"
    ):
        shards({"ACCELERATE_USE_FSDP": "true", variable: value})


def test_accelerate_does_not_see_what_was_asked(monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    with hidden_from_accelerate():
        assert not shards()
    assert shards()
