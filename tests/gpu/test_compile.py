"""Compiled steps, with and without CUDA graphs, against uncompiled ones on the same device."""

import gc

import pytest
import torch
from torch._dynamo.utils import counters

from model.encoders import build_encoder
from model.network import MultiTaskNetwork
from model.subset import subset
from model.tasks.spec import TaskSpec
from tests.gpu.devices import DEVICE, ON_CPU

GRAPHS = "reduce-overhead"  # without CUDA graphs on the CPU


@pytest.fixture(autouse=True)
def _exact_and_fresh():
    matmul, convolution = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    torch.compiler.reset()
    counters.clear()
    yield
    torch.compiler.reset()
    torch.backends.cuda.matmul.allow_tf32 = matmul
    torch.backends.cudnn.allow_tf32 = convolution


def build(channels=8):
    torch.manual_seed(0)
    encoder = build_encoder(
        "residual64", 3, image_size=(32, 32), trunk_depth=1, options={"channels": channels}
    )
    return MultiTaskNetwork([TaskSpec("a", "binary")], encoder, (32, 32)).to(DEVICE)


def images_of(seed, batch):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(256, (batch, 3, 32, 32), generator=generator, dtype=torch.uint8)


def forward_backward(network, seed, precision, batch=8):
    """Add the gradient of a micro-batch; its losses [N,K]."""
    labels = (torch.arange(batch) % 2).float().unsqueeze(0).to(DEVICE)
    targets = network.labels.targets(labels, {}, torch.ones_like(labels, dtype=torch.bool))
    with torch.autocast(DEVICE, torch.bfloat16, enabled=precision == "bf16"):
        images = images_of(seed, batch).to(DEVICE)
        losses = network(images, network.select(network.heads), targets)["losses"]
    losses.sum().backward()
    return losses.detach()


def evaluate(network):
    with torch.no_grad():
        network.eval()
        output = network(images_of(99, 5).to(DEVICE), network.select([(0, 1)]))
        network.train()
    return output["predictions"]["a"]


def gradient(network):
    return torch.cat([p.grad.flatten() for p in network.parameters()])


def assert_close(found, expected, tolerance):
    assert float((found - expected).norm() / expected.norm()) < tolerance


@pytest.mark.parametrize(
    ("mode", "activation_checkpointing", "precision", "tolerance"),
    [
        (None, False, "fp32", 1e-4),
        (None, True, "bf16", 3e-2),
        (GRAPHS, True, "fp32", 1e-4),
        (GRAPHS, False, "bf16", 3e-2),
    ],
)
def test_a_compiled_step_of_two_micro_batches_is_the_same(
    mode, activation_checkpointing, precision, tolerance
):
    plain = build()
    compiled = subset(plain, plain.heads)
    compiled.compile_parts(mode)
    optimizer = torch.optim.SGD(plain.parameters(), lr=1e-3)
    graphs = []
    for step in range(20):
        losses = []
        for network in (plain, compiled):
            network.activation_checkpointing = activation_checkpointing
            network.zero_grad()
            torch.compiler.cudagraph_mark_step_begin()  # as an engine does
            losses.append([forward_backward(network, 2 * step + n, precision) for n in range(2)])
        for found, expected in zip(losses[1], losses[0], strict=True):
            assert_close(found, expected, tolerance)
        assert_close(gradient(compiled), gradient(plain), tolerance)
        optimizer.step()
        # Rounding must not grow from step to step. The weights stay where they are in memory.
        compiled.load_state_dict(plain.state_dict())
        if step == 10:
            torch.testing.assert_close(evaluate(compiled), evaluate(plain))
        graphs.append(counters["stats"]["unique_graphs"])
    assert graphs == [2] * 20, "trunk and branch"
    if mode == GRAPHS and not ON_CPU:
        assert counters["inductor"]["cudagraph_skips"] == 0
        assert recorded_graphs() > 0


def recorded_graphs():
    from torch._inductor.cudagraph_trees import get_manager

    manager = get_manager(torch.cuda.current_device(), create_if_none_exists=False)
    return 0 if manager is None else len(list(manager.get_roots()))


@pytest.mark.gpu(emulated=False)
def test_memory_of_cuda_graphs_is_freed_with_the_network():
    network = build(channels=64)
    network.compile_parts(GRAPHS)
    for step in range(4):
        network.zero_grad()
        torch.compiler.cudagraph_mark_step_begin()
        forward_backward(network, step, "fp32", batch=256)
    held = reserved()
    del network
    torch.compiler.reset()  # as an engine does when it is released
    assert reserved() < 0.5 * held


def reserved():
    gc.collect()
    torch.cuda.synchronize()
    torch.cuda.empty_cache()
    return torch.cuda.memory_reserved()
