import logging

import pytest
import torch

from data_pipelines.reading.collate import Batch
from model.network import MultiTaskNetwork
from model.subset import subset
from model.tasks.spec import TaskSpec
from trainer.builders import build_network
from trainer.config.loading import parse_config
from trainer.monitoring.throughput import StepFlops, count_flops, peak_of_name, peak_tflops

SIZE, BATCH = 8, 4


@pytest.fixture(autouse=True)
def _nothing_is_remembered(monkeypatch):
    """Other tests share their counts, see `tests.operations`."""
    monkeypatch.setattr("trainer.monitoring.throughput.count_flops", count_flops)


@pytest.fixture
def network():
    """Two branches of convolutions, with two linear heads each."""
    options = {"model_type": "resnet", "embedding_size": 8, "hidden_sizes": [8], "depths": [1]}
    tree = {
        "run": {"out": "x", "steps": 1},
        "data": {"shards": "x", "image_size": [SIZE, SIZE], "global_batch": BATCH},
        "model": {
            "branches": 2,
            "encoder": {"name": "backbone", "options": {**options, "layer_type": "basic"}},
        },
    }
    tasks = (TaskSpec("a", "binary"), TaskSpec("b", "binary"))
    return build_network(parse_config(tree, "test"), tasks, None)


@pytest.fixture
def batch():
    return Batch(
        tasks=("a", "b"),
        scalar_tasks=("a", "b"),
        images=torch.zeros(BATCH, 3, SIZE, SIZE, dtype=torch.uint8),
        scalars=torch.zeros(2, BATCH),
        dense={},
        valid_rows=torch.ones(2, BATCH, dtype=torch.bool),
        keys=("",) * BATCH,
    )


def by_hand(network: MultiTaskNetwork, batch: Batch, head_passes: int) -> int:
    """Twice the products of every convolution and head: forward, and backward to what needs it."""
    total = 0

    def count(layer, inputs, output):
        nonlocal total
        products = output.numel() * layer.weight[0].numel()
        passes = 1 + inputs[0].requires_grad + layer.weight.requires_grad
        total += 2 * products * passes

    layers = [layer for layer in network.modules() if isinstance(layer, torch.nn.Conv2d)]
    handles = [layer.register_forward_hook(count) for layer in layers]
    network(batch.images, network.select(network.heads))
    for handle in handles:
        handle.remove()
    (stack,) = network.stacked_heads.values()
    return total + 2 * head_passes * BATCH * stack.weight.shape[-1]


def one_head_a_task(network):
    return subset(network, [(0, 0), (1, 1)])


def test_operations_are_those_of_forward_and_backward(network, batch):
    pruned = one_head_a_task(network)
    expected = by_hand(pruned, batch, head_passes=3 + 3)
    assert expected > 0
    assert count_flops(pruned, pruned.select(pruned.heads), batch) == expected


def test_what_is_frozen_takes_part_only_forward(network, batch):
    pruned = one_head_a_task(network)
    for parameter in pruned.branches[0].parameters():
        parameter.requires_grad_(False)
    frozen = by_hand(pruned, batch, head_passes=2 + 3)  # nothing reads what the first would give
    assert count_flops(pruned, pruned.select(pruned.heads), batch) == frozen
    assert frozen < by_hand(one_head_a_task(network), batch, head_passes=3 + 3)


def test_heads_that_are_off_cost_nothing(network, batch):
    every = count_flops(network, network.select(network.heads), batch)
    one_branch = count_flops(network, network.select([(0, 0), (1, 0)]), batch)
    assert one_branch == pytest.approx(every / 2)


def test_counting_leaves_weights_and_random_numbers_alone(network, batch):
    state = torch.get_rng_state()
    weights = {name: value.clone() for name, value in network.state_dict().items()}
    count_flops(network, network.select(network.heads), batch)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(value, weights[n]) for n, value in network.state_dict().items())
    assert all(parameter.grad is None for parameter in network.parameters())


def test_micro_batches_add_up_and_a_new_plan_is_counted(network, batch):
    flops, selection = StepFlops(), network.select(network.heads)
    one = flops.of(network, selection, [batch])
    assert one == count_flops(network, selection, batch)
    assert StepFlops().of(network, selection, [batch, batch]) == 2 * one
    assert flops.of(network, network.select([(0, 0), (1, 0)]), [batch]) < one


def test_heads_of_equal_cost_are_not_counted_again(network, batch, monkeypatch):
    """In a step with sampled heads the selection is always another one."""
    flops = StepFlops()
    first = flops.of(network, network.select([(0, 0), (1, 1)]), [batch])
    with monkeypatch.context() as patch:
        patch.setattr("trainer.monitoring.throughput.count_flops", lambda *_: -1)
        assert flops.of(network, network.select([(0, 1), (1, 0)]), [batch]) == first
    network.trunk.requires_grad_(False)
    network.branches[0].requires_grad_(False)
    assert flops.of(network, network.select([(0, 1), (1, 0)]), [batch]) < first


def test_what_cannot_be_counted_is_unknown_and_does_no_harm(network, batch, caplog, monkeypatch):
    def fail(_config):
        raise NotImplementedError("no meta kernel")

    monkeypatch.setattr(MultiTaskNetwork, "from_config", fail)
    flops, selection = StepFlops(), network.select(network.heads)
    with caplog.at_level(logging.INFO, "trainer"):
        assert [flops.of(network, selection, [batch]) for _ in range(3)] == [None] * 3
    assert [record.message for record in caplog.records] == [
        "the operations of a step cannot be counted: no meta kernel"
    ]


@pytest.mark.parametrize(
    ("name", "peak"),
    [
        ("NVIDIA H200", 989.0),
        ("NVIDIA H100 80GB HBM3", 989.0),
        ("NVIDIA H100 PCIe", 756.0),
        ("NVIDIA H100 NVL", 835.0),
        ("NVIDIA A100-SXM4-80GB", 312.0),
        ("Tesla V100-SXM2-32GB", 125.0),
        ("NVIDIA L4", 121.0),
        ("NVIDIA L40S", 362.0),
        ("NVIDIA A1000", None),
        ("NVIDIA L40", None),
    ],
)
def test_peak_by_name(name, peak):
    assert peak_of_name(name) == peak


@pytest.mark.parametrize(
    ("name", "precision", "peak"),
    [
        ("NVIDIA A100-SXM4-80GB", "tf32", 156.0),
        ("NVIDIA H100 80GB HBM3", "tf32", 494.5),
        ("NVIDIA H100 80GB HBM3", "fp16", 989.0),
        ("NVIDIA H100 80GB HBM3", "fp32", None),
        ("Tesla V100-SXM2-32GB", "tf32", None),
        ("Tesla T4", "tf32", None),
    ],
)
def test_peak_by_precision(name, precision, peak, monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: name)
    assert peak_tflops(torch.device("cuda"), precision) == peak


def test_the_peak_of_a_cpu_is_not_known():
    assert peak_tflops(torch.device("cpu"), "bf16") is None
