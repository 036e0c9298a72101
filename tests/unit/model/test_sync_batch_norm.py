"""Statistics of the batches of two real processes, against one batch norm over the joint batch."""

import copy

import pytest
import torch
import torch.distributed as dist
from torch import nn

from model.encoders import build_encoder
from model.sync_batch_norm import SyncBatchNorm, SyncBatchNormAct, synchronise
from tests.processes import run_forked
from tests.waits import Waits


class NormAct(nn.BatchNorm2d):
    """Made as the normalisations of timm, which have a forward pass of their own."""

    def __init__(self, channels, **options):
        super().__init__(channels, **options)
        self.drop, self.act = nn.Identity(), nn.GELU()

    def forward(self, input):
        return self.act(self.drop(super().forward(input)))


class Doubled(nn.BatchNorm2d):
    """Computes what no synchronised layer does."""

    def forward(self, input):
        return 2 * super().forward(input)


CASES = (
    (nn.BatchNorm2d, (6, 4), {}),
    (nn.BatchNorm2d, (6, 4), {"affine": False, "momentum": None}),
    (nn.BatchNorm1d, (), {"eps": 0.1, "momentum": 0.3}),
    (nn.BatchNorm2d, (6, 4), {"track_running_stats": False}),
    (NormAct, (6, 4), {"momentum": 0.3}),
)


def layer(kind, **options):
    torch.manual_seed(3)
    made = kind(5, **options)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.uniform_(0.5, 2.0)
    return made


def data(shape):
    generator = torch.Generator().manual_seed(4)
    inputs = 3 + 2 * torch.randn(2, 7, 5, *shape, generator=generator, dtype=torch.float64)
    return inputs, torch.randn(inputs.shape, generator=generator, dtype=torch.float64)


def passes(norm, inputs, gradients):
    """Two training passes, so that the running statistics move twice."""
    results = []
    for maps, gradient in zip(inputs, gradients, strict=True):
        leaf = maps.clone().requires_grad_()
        norm.zero_grad()
        out = norm(leaf)
        out.backward(gradient)
        weights = [p.grad.clone() for p in norm.parameters()]
        results.append((out.detach(), leaf.grad, weights))
    return results


def compare(rank, root):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{root}/store", rank=rank, world_size=2)
    for kind, shape, options in CASES:
        for cut in (3, 4, 1):  # of seven samples, for the first rank
            _compare(rank, kind, shape, options, cut)
    dist.destroy_process_group()


def _compare(rank, kind, shape, options, cut):
    whole = layer(kind, **options).double()
    network = nn.Sequential(copy.deepcopy(whole))
    names = list(network.state_dict())
    synchronise(network)
    expected_type = SyncBatchNormAct if kind is NormAct else SyncBatchNorm
    assert type(network[0]) is expected_type and list(network.state_dict()) == names
    inputs, gradients = data(shape)
    expected = passes(whole, inputs, gradients)
    local = slice(0, cut) if rank == 0 else slice(cut, None)
    with Waits() as waits:
        found = passes(network, inputs[:, local], gradients[:, local])
    assert not waits.found
    close = {"rtol": 1e-10, "atol": 1e-10}
    for (out, into, weights), (all_out, all_into, all_weights) in zip(found, expected, strict=True):
        torch.testing.assert_close(out, all_out[local], **close)
        torch.testing.assert_close(into, all_into[local], **close)
        for part, total in zip(weights, all_weights, strict=True):
            dist.all_reduce(part)  # as the engine does with those of all parameters
            torch.testing.assert_close(part, total, **close)
    for name, buffer in whole.named_buffers():
        torch.testing.assert_close(network[0].get_buffer(name), buffer, **close)
    whole.eval(), network.eval()
    torch.testing.assert_close(network(inputs[0]), whole(inputs[0]), **close)


@pytest.mark.distributed
def test_two_ranks_equal_one_joint_batch(tmp_path):
    run_forked(compare, (0, str(tmp_path)), (1, str(tmp_path)))


def keep_layout(rank, root):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{root}/store", rank=rank, world_size=2)
    norm, expected = (layer(nn.BatchNorm2d) for _ in range(2))
    synchronise(norm)
    maps = torch.randn(2, 5, 6, 4, generator=torch.Generator().manual_seed(rank))
    for memory_format in (torch.channels_last, torch.contiguous_format):
        leaf = maps.clone(memory_format=memory_format).requires_grad_()
        out = norm(leaf)
        assert out.stride() == expected(leaf).stride()
        (into,) = torch.autograd.grad(out.square().sum(), leaf)
        assert into.stride() == leaf.stride()
    with torch.autocast("cpu", torch.bfloat16):  # as maps of a convolution are
        low = norm(maps.to(torch.bfloat16).requires_grad_())
    torch.testing.assert_close(low.float(), norm(maps), atol=3e-2, rtol=3e-2)
    assert low.dtype == torch.bfloat16
    low.sum().backward()
    frozen = layer(nn.BatchNorm2d).requires_grad_(False)
    synchronise(frozen)
    leaf = maps.detach().clone().requires_grad_()
    frozen(leaf).sum().backward()
    assert leaf.grad.abs().max() < 1e-5  # a shift of all inputs is normalised away
    with pytest.raises(ValueError, match=r"input has shape \(0, 5, 6, 4\), must hold a sample"):
        norm(maps[:0])
    dist.destroy_process_group()


@pytest.mark.distributed
def test_layout_frozen_parameters_and_empty_batches(tmp_path):
    run_forked(keep_layout, (0, str(tmp_path)), (1, str(tmp_path)))


def test_without_other_ranks_nothing_changes():
    plain, norm = (layer(nn.BatchNorm2d) for _ in range(2))
    synchronise(norm)
    maps = torch.randn(3, 5, 4, 4)
    assert norm(maps).equal(plain(maps)) and norm.running_mean.equal(plain.running_mean)


def test_a_layer_that_computes_something_else_stays_as_it_is():
    network = nn.Sequential(Doubled(5), NormAct(5), nn.BatchNorm2d(5))
    synchronise(network)
    assert [type(part).__name__ for part in network] == [
        "Doubled",
        "SyncBatchNormAct",
        "SyncBatchNorm",
    ]


ENCODERS = {
    "residual64": {"channels": 8},
    "xception": {"channels": 32},
    "backbone": {"model_type": "resnet", "depths": [1, 1, 1, 1]},
    "timm": {"model": "regnety_002"},
}


@pytest.mark.parametrize("name", ENCODERS)
def test_every_normalisation_of_an_encoder(name):
    """Some are of classes of their own."""
    encoder = build_encoder(name, 1, image_size=(64, 64), options=ENCODERS[name])
    network = nn.ModuleList([encoder.trunk, *encoder.branches])
    norms = [layer for layer in network.modules() if hasattr(layer, "running_mean")]
    synchronise(network)
    assert norms and all(isinstance(layer, SyncBatchNorm) for layer in norms)
