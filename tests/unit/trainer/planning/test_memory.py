from dataclasses import replace

import pytest
import torch

from model.tasks.spec import TaskSpec
from trainer.builders import build_network
from trainer.config.loading import parse_config
from trainer.engines.optim import build_optimizer
from trainer.planning.memory import ENGINES, NetworkBytes, engine_memory
from trainer.planning.step_cost import StepCost

W = 4_000_000
SIZES = NetworkBytes(weights=W, buffers=0, travelling=W, largest=W // 2, held=W * 3 // 4, low=False)
SMALL = StepCost(
    batch=100, targets=20, activations=1000, copies=0, peak=2000, peak_with_gradients=W, flops=1
)
LARGE = StepCost(
    batch=100,
    targets=20,
    activations=50 * W,
    copies=0,
    peak=60 * W,
    peak_with_gradients=60 * W,
    flops=1,
)


@pytest.fixture(scope="module")
def network():
    options = {"model_type": "resnet", "embedding_size": 8, "hidden_sizes": [8], "depths": [1]}
    tree = {
        "run": {"out": "x", "steps": 1},
        "data": {"shards": "x", "image_size": [16, 16], "global_batch": 4},
        "model": {
            "branches": 3,
            "encoder": {"name": "backbone", "options": {**options, "layer_type": "basic"}},
        },
    }
    tasks = tuple(TaskSpec(name, "binary") for name in "abcde")
    return build_network(parse_config(tree, "test"), tasks)


def test_weights_and_moments_of_one_process_are_those_that_a_real_step_keeps(network):
    tree = {"run": {"out": "x", "steps": 1}, "data": {"shards": "x", "image_size": [16, 16]}}
    tree["data"]["global_batch"] = 4
    tree["model"] = {"branches": 1, "encoder": {"name": "residual64"}}
    optimizer = build_optimizer(network, parse_config(tree, "test").optim)
    for parameter in network.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    sizes = NetworkBytes.of(network, "fp32")
    memory = engine_memory("ddp", sizes, SMALL, 1, 1)
    kept = [*network.parameters(), *network.buffers()]
    assert memory.weights == sum(tensor.numel() * tensor.element_size() for tensor in kept)
    assert memory.moments == sum(
        value.numel() * value.element_size()
        for state in optimizer.state.values()
        for name, value in state.items()
        if name != "step"
    )


def test_sizes_of_a_network(network):
    sizes = NetworkBytes.of(network, "bf16")
    branch = sum(4 * p.numel() for p in network.branches[0].parameters())
    heads = sum(4 * p.numel() for p in network.stacked_heads.parameters())
    assert sizes.weights == 3 * branch + heads
    assert sizes.largest == branch
    assert sizes.held == 3 * branch, "without a trunk no branch is let go of"
    assert sizes.low and 0.5 * sizes.weights < sizes.travelling < sizes.weights
    assert NetworkBytes.of(network, "fp32").travelling == sizes.weights


@pytest.mark.parametrize(
    ("engine", "weights", "moments"),
    [
        ("ddp", W, 2 * W),
        ("zero1", W + W / 4, W / 2),
        ("zero2", W + W / 4, W / 2),
        ("zero3", W / 2, W / 2),
        ("zero3_offload", W / 4, 0),
        ("fsdp2", W / 4, W / 2),
    ],
)
def test_what_stays_between_steps_on_four_processes(engine, weights, moments):
    memory = engine_memory(engine, SIZES, SMALL, 4, 1, bucket=0)
    assert (memory.weights, memory.moments) == (weights, moments)
    parts = (memory.weights, memory.moments, memory.gradients, memory.communication, memory.step)
    assert memory.total == sum(parts) + memory.workspaces + memory.nccl
    assert (memory.host > 0) == (engine == "zero3_offload")


@pytest.mark.parametrize(
    ("engine", "low", "numbers"),
    [
        ("ddp", True, 0), ("fsdp2", True, 0), ("zero1", False, 4), ("zero1", True, 8),
        ("zero2", True, 8), ("zero3", False, 4), ("zero3", True, 6), ("zero3_offload", False, 4),
    ],
)  # fmt: skip
def test_the_buffers_that_gradients_are_summed_in(engine, low, numbers):
    sizes = NetworkBytes(W, 0, W, W // 2, W // 2, low)
    with_buffer, without = (
        engine_memory(engine, sizes, LARGE, 2, 1, bucket=bucket).total for bucket in (1000, 0)
    )
    assert with_buffer - without == numbers * 1000


@pytest.mark.parametrize("engine", ENGINES)
def test_zero_fills_a_second_buffer_while_it_sends_the_first(engine):
    one, two = (
        engine_memory(engine, SIZES, LARGE, 2, 1, bucket=1000, overlap_comm=overlap).total
        for overlap in (False, True)
    )
    assert two - one == (4000 if engine in ("zero1", "zero2") else 0)


def test_gradients_wait_for_activations_only_where_a_rank_keeps_them():
    early = StepCost(0, 0, 0, 0, peak=10 * W, peak_with_gradients=10 * W + W // 5, flops=1)
    gradients = {e: engine_memory(e, SIZES, early, 4, 1, bucket=0).gradients for e in ENGINES}
    assert gradients["ddp"] == W, "they lie in the buckets that are sent"
    alone = engine_memory("ddp", SIZES, early, 1, 1, bucket=0)
    assert alone.gradients == gradients["zero1"] == W // 5
    assert gradients["zero2"] == gradients["fsdp2"] == gradients["zero3_offload"] == 0
    assert gradients["zero3"] == W // 4
    later = {e: engine_memory(e, SIZES, early, 4, 2, bucket=0).gradients for e in ENGINES}
    assert later["ddp"] == later["zero1"] == W
    assert later["zero2"] == later["fsdp2"] == later["zero3"] == W // 4


@pytest.mark.parametrize("engine", ENGINES)
def test_the_buffers_of_libraries(engine):
    cost = replace(SMALL, workspaces=123)
    alone, four = (engine_memory(engine, SIZES, cost, p, 1, nccl=7) for p in (1, 4))
    assert (alone.workspaces, alone.nccl) == (123, 0), "one process sends nothing"
    # DeepSpeed has a group of its own beside accelerate's.
    assert (four.workspaces, four.nccl) == (123, 14 if engine.startswith("zero") else 7)
    assert four.total - engine_memory(engine, SIZES, SMALL, 4, 1, nccl=0).total == 123 + four.nccl


def test_micro_batches_wait_on_the_device():
    one, three = (engine_memory("zero3", SIZES, LARGE, 2, count, bucket=0) for count in (1, 3))
    assert three.total - one.total == 2 * (LARGE.batch + LARGE.targets)


def test_more_processes_never_need_more_each():
    for engine in ENGINES:
        totals = [engine_memory(engine, SIZES, SMALL, p, 1).total for p in (2, 4, 8, 64)]
        assert totals == sorted(totals, reverse=True), engine


def test_what_is_gathered_in_low_precision_is_not_copied_again():
    low = NetworkBytes(W, 0, W // 2, W // 2, W // 2, low=True)
    copies = StepCost(0, 0, 0, W // 2, peak=10 * W, peak_with_gradients=10 * W, flops=1)
    memory = engine_memory("zero3", low, copies, 2, 1, bucket=0)
    assert memory.step == 10 * W - W // 2 and memory.communication == W // 2
