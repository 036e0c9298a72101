"""Compiled trunk and branches: as many graphs as there are structures, and the same results."""

import gc
import weakref

import pytest
import torch
from torch import nn
from torch._dynamo.testing import CompileCounterWithBackend

from model.compilation import compiled_call
from model.encoders import build_encoder
from model.network import MultiTaskNetwork
from model.subset import subset
from model.tasks.spec import TaskSpec

RESNET = {"model_type": "resnet", "embedding_size": 4, "hidden_sizes": [4, 8], "depths": [1, 1]}
CONVNEXT = {"model_type": "convnext", "hidden_sizes": [4, 8], "depths": [1, 1], "num_stages": 2}
TRANSFORMER = {"hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2, "patch_size": 8}
SWIN = {"model_type": "swin", "embed_dim": 8, "depths": [1], "num_heads": [1], "window_size": 4}
XCEPTION = {"sizes": [4, 4, 8], "channels": 8}
# Name, options, image size, trunk depth, graphs of trunk and branches.
ENCODERS = {
    "mlp": ("mlp", {"widths": [3, 8, 4]}, 1, 0, 1),
    "mlp with trunk": ("mlp", {"widths": [3, 8, 4]}, 1, 1, 2),
    "residual64": ("residual64", {"channels": 4}, 16, 0, 1),
    "stem as trunk": ("residual64", {"channels": 4}, 16, 1, 2),
    "xception": ("xception", XCEPTION, 16, 0, 1),
    "xception with trunk": ("xception", XCEPTION, 16, 2, 2),
    "resnet": ("backbone", {**RESNET, "layer_type": "basic"}, 32, 0, 1),
    "resnet with trunk": ("backbone", {**RESNET, "layer_type": "basic"}, 32, 2, 2),
    "convnext with trunk": ("backbone", CONVNEXT, 32, 2, 2),
    "vit with trunk": ("backbone", {"model_type": "vit", **TRANSFORMER}, 32, 2, 2),
    "dinov2 with trunk": ("backbone", {"model_type": "dinov2", **TRANSFORMER}, 32, 2, 2),
    "swin, which is whole": ("backbone", SWIN, 32, 0, 1),
}  # fmt: skip


@pytest.fixture(autouse=True)
def _fresh_compiler():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def build(case, branches=3):
    name, options, size, trunk_depth, graphs = ENCODERS[case]
    torch.manual_seed(0)
    encoder = build_encoder(
        name, branches, image_size=(size, size), trunk_depth=trunk_depth, options=options
    )
    tasks = [TaskSpec("a", "binary"), TaskSpec("b", "regression")]
    return MultiTaskNetwork(tasks, encoder, (size, size)), graphs


def train(network, batch=4, **options):
    """Forward and backward pass; the network's output."""
    generator = torch.Generator().manual_seed(batch)
    shape = (batch, 3, *network.image_size)
    images = torch.randint(256, shape, generator=generator, dtype=torch.uint8)
    labels = torch.randint(2, (2, batch), generator=generator).float()
    valid = torch.ones(2, batch, dtype=torch.bool)
    targets = network.labels.targets(labels, {}, valid)
    output = network(images, network.select(network.heads), targets, **options)
    output["losses"].sum().backward()
    return output


def evaluate(network):
    images = torch.zeros(3, 3, *network.image_size, dtype=torch.uint8)
    return network(images, network.select([(0, 0), (1, 0)]))


def assert_same(found, expected, tolerance=1e-3):
    for name, buffer in expected.named_buffers():
        torch.testing.assert_close(found.get_buffer(name), buffer)
    for name, parameter in expected.named_parameters():
        torch.testing.assert_close(
            found.get_parameter(name).grad, parameter.grad, rtol=tolerance, atol=tolerance
        )


@pytest.fixture
def counter():
    """A compiler that counts graphs and runs them as they were traced."""
    return CompileCounterWithBackend("eager")


WITH_CHECKPOINTING = ("mlp", "stem as trunk", "resnet with trunk")
LIKE_OTHERS = ("mlp with trunk", "xception", "resnet", "dinov2 with trunk")


@pytest.mark.parametrize(
    ("case", "activation_checkpointing"),
    [
        *((case, False) for case in ENCODERS if case not in LIKE_OTHERS),
        *((case, True) for case in WITH_CHECKPOINTING),
        *(pytest.param(case, False, marks=pytest.mark.slow) for case in LIKE_OTHERS),
    ],
)
def test_trunk_and_branches_have_one_graph_for_each_structure(
    case, activation_checkpointing, counter
):
    plain, graphs = build(case)
    compiled = subset(plain, plain.heads)
    compiled.compile_parts(backend=counter)
    for network in (plain, compiled):
        network.activation_checkpointing = activation_checkpointing
        for _ in range(2):
            train(network)
    assert counter.frame_count == graphs
    assert list(compiled.state_dict()) == list(plain.state_dict())
    assert_same(compiled, plain)
    with torch.no_grad():
        train_mode = evaluate(compiled)
    with torch.inference_mode():
        evaluate(compiled)
    compiled.eval()
    evaluate(compiled)
    with torch.no_grad():
        evaluate(compiled)
    compiled.train()
    train(compiled)
    assert counter.frame_count == graphs, "evaluation and hooks run uncompiled"
    assert train_mode["predictions"].keys() == {"a", "b"}


def test_statistics_of_gradients_between_compiled_passes(counter):
    plain, graphs = build("stem as trunk")
    compiled = subset(plain, plain.heads)
    compiled.compile_parts(backend=counter)
    found = []
    for network in (plain, compiled):
        train(network)
        found.append(train(network, gradient_statistics=True)["gradient_statistics"])
        train(network)
    assert counter.frame_count == graphs
    assert found[0].keys() == found[1].keys() and found[0]
    for name, value in found[0].items():
        torch.testing.assert_close(found[1][name], value, rtol=1e-3, atol=1e-4)
    assert_same(compiled, plain)


def test_batches_of_other_sizes_share_a_second_graph(counter):
    network, graphs = build("stem as trunk")
    network.compile_parts(backend=counter)
    for batch, expected in ((4, graphs), (4, graphs), (6, 2 * graphs), (3, 2 * graphs)):
        train(network, batch)
        assert counter.frame_count == expected, batch
    for batch in (4, 6, 3, 5, 7):
        train(network, batch)
    assert counter.frame_count == 2 * graphs


def test_smaller_and_frozen_networks_use_the_same_graphs(counter):
    network, graphs = build("stem as trunk")
    for branches in ((0, 1, 2), (0, 1), (1,), (0,)):
        heads = [(task, branch) for task in range(2) for branch in branches]
        network = subset(network, [head for head in heads if head in network.heads])
        network.compile_parts(backend=counter)
        train(network)
        assert counter.frame_count == graphs, branches
    frozen = subset(network, network.heads)
    for parameter in frozen.trunk.parameters():
        parameter.requires_grad_(False)
    frozen.freeze([frozen.trunk])
    frozen.compile_parts(backend=counter)
    train(frozen)
    assert counter.frame_count == 2 * graphs  # the trunk's without a gradient, and behind it
    frozen.freeze([])
    train(frozen)
    limit = torch._dynamo.config.recompile_limit
    assert counter.frame_count <= 2 * graphs + 1 < limit


def test_nothing_compiled_keeps_a_network(counter):
    network, _ = build("residual64")
    network.compile_parts(backend=counter)
    train(network)
    tensors = [*network.parameters(), *network.buffers()]
    references = [weakref.ref(part) for part in (*tensors, *network.modules())]
    del network, tensors
    gc.collect()
    assert not any(reference() is not None for reference in references)


def test_hooks_and_replaced_methods_of_a_part_are_called(counter):
    run = compiled_call(backend=counter)
    inputs, part = torch.ones(2, 3), nn.Sequential(nn.Linear(3, 3), nn.ReLU())
    handle = part.register_forward_hook(lambda _, __, output: output + 1)
    assert torch.equal(run(part, inputs), part(inputs)) and counter.frame_count == 1
    handle.remove()
    assert torch.equal(run(part, inputs), part(inputs)) and counter.frame_count == 1
    assert torch.equal(run(nn.Identity(), inputs), inputs)
    part.forward = lambda images: 2 * images
    assert torch.equal(run(part, inputs), 2 * inputs)
    assert vars(part)["forward"](1) == 2


def in_flat_storage(offset, device):
    """A part whose weights are, as under ZeRO 1 and 2, at some place of one storage."""
    part, flat = nn.Linear(4, 4, device=device), torch.zeros(100, device=device)
    for parameter in part.parameters():
        parameter.data = flat[offset : offset + parameter.numel()].view_as(parameter)
        offset += parameter.numel()
    return part


@pytest.mark.parametrize(("device", "expected"), [("meta", [4, 60]), ("cpu", [4, 31, 60])])
def test_parts_with_misaligned_weights_run_uncompiled_except_on_the_cpu(device, expected):
    compiled = []

    def backend(graph, _):
        def run_graph(*inputs):
            compiled.append(min(v.storage_offset() for v in inputs if v.storage_offset()))
            return graph(*inputs)

        return run_graph

    run = compiled_call(backend=backend)
    for offset in (4, 31, 60):
        output = run(in_flat_storage(offset, device), torch.ones(2, 4, device=device))
        assert output.shape == (2, 4)
    assert compiled == expected


@pytest.mark.slow
@pytest.mark.parametrize("activation_checkpointing", [False, True])
@pytest.mark.parametrize("case", ["stem as trunk", "resnet"])
def test_code_of_inductor_learns_the_same(case, activation_checkpointing):
    plain, _ = build(case)
    compiled = subset(plain, plain.heads)
    compiled.compile_parts()
    for network in (plain, compiled):
        network.activation_checkpointing = activation_checkpointing
        train(network)
        train(network, gradient_statistics=True)
        train(network)
    assert_same(compiled, plain)
