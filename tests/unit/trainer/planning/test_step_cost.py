from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.distributed._tools.mem_tracker import MemTracker

from model.tasks.presets import PRESETS
from model.tasks.spec import TaskSpec
from trainer.builders import build_network
from trainer.config.loading import parse_config
from trainer.planning.step_cost import AllocationTracker, empty_batch, step_cost

MLP = {"name": "mlp", "options": {"widths": [6, 10, 4]}}
RESNET = {
    "name": "backbone",
    "options": {
        "model_type": "resnet",
        "embedding_size": 8,
        "hidden_sizes": [16],
        "depths": [1],
        "layer_type": "basic",
    },
}
BINARY = tuple(TaskSpec(f"t{number}", "binary") for number in range(3))


def network_of(encoder, tasks, size, branches=2, **model):
    tree = {
        "run": {"out": "x", "steps": 1},
        "data": {"shards": "x", "image_size": [size, size], "global_batch": 8},
        "model": {"branches": branches, "encoder": encoder, "dense_widths": [8], **model},
    }
    return build_network(parse_config(tree, "test"), tasks)


def test_the_tracker_follows_what_lives():
    weight = nn.Parameter(torch.zeros(100))
    with AllocationTracker([weight]) as tracker:
        first = torch.zeros(1000)
        second = first + 1
        assert tracker.alive == 8000
        view = second[10:]
        del first, second
        assert tracker.alive == 4000, "a view keeps what it shows"
        del view
        assert (tracker.alive, tracker.peak) == (0, 8000)
        (weight * 1).sum().backward()
        assert weight.grad is not None and tracker.alive == 400
    assert tracker.peak_with_gradients == 8000


def test_gradients_of_parameters_are_told_apart():
    weight = nn.Parameter(torch.zeros(1000))
    with AllocationTracker([weight]) as tracker:
        (weight * 1).sum().backward()
        kept = torch.zeros(5000)
    assert tracker.peak_with_gradients == 24_000
    assert tracker.peak == kept.numel() * 4


def test_weights_in_another_precision_are_told_apart():
    weight, value = nn.Parameter(torch.zeros(10, 10)), torch.zeros(4, 10)
    with AllocationTracker([weight]) as tracker, torch.autocast("cpu", torch.bfloat16):
        result = nn.functional.linear(value, weight)
        assert tracker.copies == 200, result.dtype


def tracked_by_torch(network, batch):
    """The largest sum of all but weights and buffers, by the library's own tracker."""
    tracker = MemTracker()
    images = (batch.images, batch.scalars, batch.valid_rows, *batch.dense.values())
    tracker.track_external(network, *images)
    with tracker:
        targets = network.labels.targets(batch.scalars, batch.dense, batch.valid_rows)
        losses = network(batch.images, network.select(network.heads), targets)["losses"]
        (torch.ones_like(losses) * losses).sum().backward()
    [peak] = tracker.get_tracker_snapshot("peak").values()
    kept = {getattr(key, "value", key): value for key, value in peak.items()}
    return kept["Total"] - kept["Parameter"] - kept["Buffer"]


@pytest.mark.parametrize(
    ("encoder", "tasks", "size", "shape"),
    [(MLP, BINARY, 1, (6, 1, 1)), (RESNET, PRESETS["taskonomy5"], 32, (3, 32, 32))],
)
def test_the_peak_is_that_of_the_real_step_and_of_torch_s_own_tracker(encoder, tasks, size, shape):
    network = network_of(encoder, tasks, size)
    cost = step_cost(network, network.heads, 4, "fp32")
    expected = tracked_by_torch(network, empty_batch(tasks, 4, shape))
    assert cost.peak_with_gradients == pytest.approx(expected, rel=0.01)
    assert all(parameter.grad is not None for parameter in network.parameters()), "that was real"


def test_a_network_without_storage_costs_the_same():
    with torch.device("meta"):
        bare = network_of(RESNET, BINARY, 16)
    real = network_of(RESNET, BINARY, 16)
    assert step_cost(bare, bare.heads, 4, "fp32") == step_cost(real, real.heads, 4, "fp32")


def test_cost_of_layers_that_can_be_counted_by_hand():
    network = network_of(MLP, BINARY, 1, branches=1)
    cost = step_cost(network, network.heads, 8, "fp32")
    assert cost.batch == 8 * 6 * 4 + 3 * 8 * 4 + 3 * 8, "images, labels and their flags"
    products = 8 * (6 * 10 + 10 * 4 + 4 * 3)
    assert cost.flops == 2 * (3 * products - 8 * 6 * 10), "none for the gradient of the images"


def test_activations_grow_with_the_batch_and_fall_with_precision_and_heads():
    network = network_of(RESNET, PRESETS["taskonomy5"], 32)
    small, large = (step_cost(network, network.heads, size, "fp32") for size in (2, 8))
    assert large.activations == pytest.approx(4 * small.activations, rel=0.05)
    assert large.flops == 4 * small.flops
    low = step_cost(network, network.heads, 8, "bf16")
    assert 0 < low.copies < low.activations < 0.85 * large.activations
    assert large.copies == 0
    half = step_cost(network, [(task, 0) for task in range(5)], 8, "fp32")
    assert half.flops == pytest.approx(large.flops / 2, rel=0.01)


def test_branches_that_are_computed_again_keep_less():
    network = network_of(RESNET, BINARY, 32)
    plain = step_cost(network, network.heads, 8, "fp32")
    network.activation_checkpointing = True
    again = step_cost(network, network.heads, 8, "fp32")
    assert again.activations < 0.5 * plain.activations
    assert again.peak < plain.peak and again.flops > plain.flops


def test_a_gpu_keeps_the_map_that_a_cpu_computes_again():
    network = network_of({"name": "residual64"}, BINARY, 64)
    cpu, cuda = (step_cost(network, network.heads, 8, "fp32", device=d) for d in ("cpu", "cuda"))
    low = step_cost(network, network.heads, 8, "bf16", device="cuda")
    first_map = network.num_branches * 8 * 64 * 64 * 64 * 4  # of 64 channels, in bytes
    assert cuda.activations - cpu.activations > first_map
    assert cuda.peak > low.peak


def test_autocast_stores_more_on_a_gpu():
    """Layer normalisations and vector norms in fp32, and what is multiplied with their results."""
    options = {"model_type": "convnextv2", "hidden_sizes": [8], "depths": [2], "num_stages": 1}
    network = network_of({"name": "backbone", "options": options}, PRESETS["taskonomy5"], 32)
    cpu, cuda = (step_cost(network, network.heads, 8, "bf16", device=d) for d in ("cpu", "cuda"))
    assert cuda.activations > 1.1 * cpu.activations and cuda.peak > 1.1 * cpu.peak
    assert cuda.flops == cpu.flops and cuda.copies == cpu.copies
    for precision in ("fp32", "tf32"):
        exact = [step_cost(network, network.heads, 8, precision, device=d) for d in ("cpu", "cuda")]
        assert exact[0] == replace(exact[1], workspaces=0)
        assert exact[0] == step_cost(network, network.heads, 8, "fp32")


def test_branches_that_are_computed_again_follow_the_lists_of_a_gpu():
    options = {"model_type": "convnextv2", "hidden_sizes": [16], "depths": [4], "num_stages": 1}
    network = network_of({"name": "backbone", "options": options}, BINARY, 64, branches=1)
    network.activation_checkpointing = True
    cpu, cuda = (step_cost(network, network.heads, 8, "bf16", device=d) for d in ("cpu", "cuda"))
    assert cuda.peak > 1.1 * cpu.peak


def test_workspaces_of_convolutions():
    """Copies of input, weight and output, at the moment of each convolution."""
    convolution = nn.Conv2d(2, 5, 3, padding=1)
    inputs = torch.zeros(4, 2, 8, 8, requires_grad=True)
    maps, numbers = 4 * 2 * 8 * 8 + 4 * 5 * 8 * 8, 5 * 2 * 3 * 3
    with AllocationTracker(convolution.parameters()) as tracker:
        outputs = convolution(inputs)
        assert tracker.peak_in_convolutions == tracker.alive + 4 * (maps + numbers)
        before = tracker.alive
        outputs.sum().backward()
    assert tracker.peak_in_convolutions >= before + 4 * (maps + numbers)
    network = network_of({"name": "residual64"}, BINARY, 64)
    cpu, cuda = (step_cost(network, network.heads, 4, "fp32", device=d) for d in ("cpu", "cuda"))
    assert cpu.workspaces == 0 < cuda.workspaces < cuda.peak
    linear = network_of(MLP, BINARY, 1)
    assert step_cost(linear, linear.heads, 4, "fp32", device="cuda").workspaces == 0


def test_signals_are_part_of_the_peak():
    network = network_of(RESNET, PRESETS["taskonomy5"], 32)
    plain = step_cost(network, network.heads, 4, "fp32")
    assert step_cost(network, network.heads, 4, "fp32", gradient_statistics=True).peak > plain.peak


def test_counting_leaves_the_network_alone():
    network = network_of(RESNET, BINARY, 16)
    state = {name: value.clone() for name, value in network.state_dict().items()}
    step_cost(network, network.heads, 4, "fp32")
    assert all(torch.equal(value, state[name]) for name, value in network.state_dict().items())
    assert all(parameter.grad is None for parameter in network.parameters())
