import pytest
import torch
from torch import nn

from model.heads.deconv import DeconvHeads
from model.heads.resize import DenseHeads
from trainer.config.optim import OptimSection
from trainer.engines.optim import base_optimizer, build_optimizer, check_groups, logits_optimizer


class Network(nn.Module):
    def __init__(self):
        super().__init__()
        self.trunk = nn.Conv2d(3, 4, 3)
        self.branches = nn.ModuleList([nn.Linear(4, 4), nn.LayerNorm(4)])
        self.norm_scale = nn.Parameter(torch.ones(2, 2))
        self.stacked_heads = nn.ModuleDict({"binary": nn.Linear(4, 2)})
        self.stacked_heads["dense"] = DenseHeads(2, 4, 1, (8,), (4, 4))
        self.frozen = nn.Parameter(torch.ones(3), requires_grad=False)


def groups(**options):
    network = Network()
    optimizer = build_optimizer(network, OptimSection(**options))
    names = {parameter: name for name, parameter in network.named_parameters()}
    return {
        group["name"]: (sorted(names[p] for p in group["params"]), group)
        for group in optimizer.param_groups
    }


def test_every_trainable_parameter_is_in_exactly_one_group():
    found = sorted(name for names, _ in groups().values() for name in names)
    assert found == sorted(name for name, p in Network().named_parameters() if p.requires_grad)


def test_biases_and_norms_are_not_decayed():
    found = groups(weight_decay=0.1)
    assert found["encoder"][0] == ["branches.0.weight", "trunk.weight"]
    assert found["heads"][0] == [
        "stacked_heads.binary.weight",
        "stacked_heads.dense.weight",
        "stacked_heads.dense.weight0",
    ]
    assert found["heads_no_decay"][0] == [
        "stacked_heads.binary.bias",
        "stacked_heads.dense.bias",
        "stacked_heads.dense.gain0",
        "stacked_heads.dense.shift0",
    ]
    decays = {name: group["weight_decay"] for name, (_, group) in found.items()}
    assert decays == {"encoder": 0.1, "heads": 0.1, "encoder_no_decay": 0, "heads_no_decay": 0}


def test_of_the_deconvolution_decoder_only_kernels_are_decayed():
    network = nn.Module()
    network.stacked_heads = nn.ModuleDict({"dense": DeconvHeads(2, 4, 1, (16, 16))})
    optimizer = build_optimizer(network, OptimSection(weight_decay=0.1))
    names = {parameter: name for name, parameter in network.named_parameters()}
    decayed, rest = ([names[p] for p in group["params"]] for group in optimizer.param_groups)
    kernels = ["weight", *(f"weight_{k}{n}" for k in ("up", "conv") for n in range(4))]
    assert {name.rpartition(".")[2] for name in decayed} == set(kernels) - {"weight_conv3"}
    assert len(decayed) + len(rest) == len(names) and len(rest) == 3 * 7 + 1


def grouped(*names):
    network = Network()
    known = dict(network.named_parameters())
    return network, torch.optim.Adam([{"params": [known[name]]} for name in names])


def test_a_parameter_that_no_group_has_is_named():
    trained = [name for name, p in Network().named_parameters() if p.requires_grad]
    check_groups(*grouped(*trained))
    with pytest.raises(ValueError, match=r"\['norm_scale'\] are in no group or in several, 0 "):
        check_groups(*grouped(*(name for name in trained if name != "norm_scale")))


def test_a_parameter_that_is_not_trained_may_be_in_no_group():
    with pytest.raises(ValueError, match=r"\[\] are in no group or in several, 1 parameters"):
        check_groups(*grouped(*(name for name, _ in Network().named_parameters())))


def test_a_parameter_that_two_groups_have_is_named():
    trained = [name for name, p in Network().named_parameters() if p.requires_grad]
    network, optimizer = grouped(*trained)
    optimizer.param_groups.append(optimizer.param_groups[trained.index("trunk.weight")])
    with pytest.raises(ValueError, match=r"\['trunk.weight'\] are in no group or in several, 0 "):
        check_groups(network, optimizer)


def test_what_must_not_decay_is_named_by_its_beginning():
    optimizer = build_optimizer(
        Network(), OptimSection(weight_decay=0.1), ("stacked_heads.dense.",)
    )
    decays = {group["name"]: group for group in optimizer.param_groups}
    assert len(decays["heads"]["params"]) == 1  # the weight of the other stack
    trained = [p for p in Network().parameters() if p.requires_grad]
    assert sum(len(group["params"]) for group in decays.values()) == len(trained)


@pytest.mark.parametrize(("heads_lr", "expected"), [(None, 0.1), (0.5, 0.5)])
def test_heads_may_have_a_learning_rate_of_their_own(heads_lr, expected):
    rates = {name: group["lr"] for name, (_, group) in groups(lr=0.1, heads_lr=heads_lr).items()}
    assert rates["heads"] == rates["heads_no_decay"] == expected
    assert rates["encoder"] == rates["encoder_no_decay"] == 0.1


def test_names_of_the_optimizers():
    assert type(build_optimizer(Network(), OptimSection(name="adam"))) is torch.optim.Adam
    assert type(build_optimizer(Network(), OptimSection(name="adamw"))) is torch.optim.AdamW


def test_base_optimizer_looks_through_wrappers():
    inner = logits_optimizer(nn.Parameter(torch.ones(2)), OptimSection(betas=(0.8, 0.9)), 0.3)
    assert inner.param_groups[0]["betas"] == (0.8, 0.9) and inner.param_groups[0]["lr"] == 0.3

    class Wrapper:
        optimizer = inner

    class Outer:
        optimizer = Wrapper()

    assert base_optimizer(Outer()) is inner and base_optimizer(inner) is inner
