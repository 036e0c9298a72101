import json
from pathlib import Path

import pytest
import torch
from torch import nn

from model.encoders import build_encoder
from model.heads.deconv import WIDTHS, DeconvHeads
from model.heads.stack import build_stacked_heads
from model.network import MultiTaskNetwork
from model.subset import subset
from model.tasks.spec import TaskSpec

FACTS = Path(__file__).resolve().parents[3] / "fixtures/reference/reference_facts.json"
ROWS = [slice(0, 4), slice(1, 3), torch.tensor([0, 3])]


def decoder(channels, outputs):
    """One head as torch modules, as it is published."""
    layers = []
    for stage, width in enumerate(WIDTHS):
        layers += [nn.ConvTranspose2d(channels, width, 2, stride=2), nn.BatchNorm2d(width)]
        layers += [nn.ReLU()]
        if stage < 3:
            layers += [nn.Conv2d(width, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU()]
        channels = width
    return nn.Sequential(*layers, nn.Conv2d(channels, outputs, 3, padding=1))


def count(module):
    return sum(parameter.numel() for parameter in module.parameters())


def pairs(stack, row, head):
    """Every tensor of a head's modules, its name in the stack and the stack's row."""
    layers = [layer for stage in range(4) for layer in (f"up{stage}", f"conv{stage}")][:-1]
    modules = [module for module in head if not isinstance(module, nn.ReLU)]
    for index, layer in enumerate(layers):
        conv, norm = modules[2 * index : 2 * index + 2]
        found = (conv.weight, conv.bias, norm.weight, norm.bias, norm.running_mean)
        names = ("weight", "bias", "gain", "shift", "mean")
        for name, tensor in zip(names, found, strict=True):
            yield tensor, f"{name}_{layer}", getattr(stack, f"{name}_{layer}")[row]
        yield norm.running_var, f"variance_{layer}", getattr(stack, f"variance_{layer}")[row]
    yield modules[-1].weight, "weight", stack.weight[row]
    yield modules[-1].bias, "bias", stack.bias[row]


def filled(num_heads, channels=5, outputs=2, image_size=(32, 48)):
    """A stack of random weights and statistics, and its heads as torch modules."""
    torch.manual_seed(0)
    stack = DeconvHeads(num_heads, channels, outputs, image_size)
    with torch.no_grad():
        for name, tensor in stack.state_dict().items():
            if not name.startswith("weight"):
                low, high = (0.5, 1.5) if name.startswith(("gain", "variance")) else (-0.3, 0.3)
                tensor.uniform_(low, high)
    heads = [decoder(channels, outputs) for _ in range(num_heads)]
    with torch.no_grad():
        for row, head in enumerate(heads):
            for tensor, _, source in pairs(stack, row, head):
                tensor.copy_(source)
    return stack, heads


@pytest.mark.parametrize("outputs", [1, 3, 18])
def test_published_sizes(outputs):
    expected = {1: 520_225, 3: 520_803, 18: 525_138}[outputs]
    with torch.device("meta"):
        stack = DeconvHeads(3, 512, outputs, (256, 256))
        (prediction,) = stack([torch.empty(1, 512, 16, 16)], [slice(0, 3)])
    assert count(stack) == 3 * expected == 3 * count(decoder(512, outputs))
    assert prediction.shape == (3, 1, outputs, 256, 256)
    assert all(len(tensor) == 3 for tensor in stack.state_dict().values())


@pytest.mark.parametrize("outputs", [1, 3, 18])
def test_the_published_implementation_has_the_same_sizes(outputs):
    facts = json.loads(FACTS.read_text())[f"taskonomy_decoder_{outputs}ch"]
    with torch.device("meta"):
        stack = DeconvHeads(1, 512, outputs, (256, 256))
        (prediction,) = stack([torch.empty(1, 512, 16, 16)], [slice(0, 1)])
    assert {"params": count(stack), "out": list(prediction[0].shape)} == facts


@pytest.mark.parametrize("rows", ROWS, ids=["all", "slice", "index"])
@pytest.mark.parametrize("training", [True, False])
def test_a_bank_is_separate_decoders(rows, training):
    stack, heads = filled(4)
    chosen = torch.arange(4)[rows].tolist()
    stack.train(training)
    maps = torch.randn(3, 5, 2, 3, requires_grad=True)
    (prediction,) = stack([maps], [rows])
    assert prediction.shape == (len(chosen), 3, 2, 32, 48)
    naive_maps = maps.detach().clone().requires_grad_()
    expected = torch.stack([heads[row].train(training)(naive_maps) for row in chosen])
    torch.testing.assert_close(prediction, expected, rtol=1e-3, atol=1e-4)

    slope = torch.randn_like(expected)
    (prediction * slope).mean().backward()
    (expected * slope).mean().backward()
    torch.testing.assert_close(maps.grad, naive_maps.grad, rtol=1e-2, atol=1e-5)
    for row, head in enumerate(heads):
        for tensor, name, source in pairs(stack, row, head):
            torch.testing.assert_close(source, tensor, rtol=1e-4, atol=1e-5, msg=name)
            if isinstance(tensor, nn.Parameter):
                gradient = torch.zeros_like(tensor) if tensor.grad is None else tensor.grad
                found = getattr(stack, name).grad[row]
                torch.testing.assert_close(found, gradient, rtol=1e-2, atol=1e-5, msg=name)


def test_only_the_statistics_of_computed_heads_move_and_only_in_training():
    stack, _ = filled(4)
    before = {name: buffer.clone() for name, buffer in stack.named_buffers()}
    maps = torch.randn(2, 5, 2, 2)
    stack.eval()([maps], [slice(0, 4)])
    assert all(torch.equal(buffer, before[name]) for name, buffer in stack.named_buffers())
    stack.train()([maps, None, maps], [torch.tensor([0, 2]), None, slice(3, 4)])
    for name, buffer in stack.named_buffers():
        moved = [not torch.equal(buffer[row], before[name][row]) for row in range(4)]
        assert moved == [True, False, True, True], name


def test_backward_works_where_branches_share_the_buffers():
    stack, _ = filled(4)
    maps = torch.randn(2, 5, 2, 2)
    found = stack([maps, maps, maps], [slice(0, 1), torch.tensor([1, 3]), slice(2, 3)])
    sum(prediction.square().mean() for prediction in found).backward()
    assert all(row.any() for row in stack.weight_up0.grad)


def test_another_image_size_is_reached_by_resizing():
    stack, heads = filled(1, image_size=(20, 30))
    maps = torch.randn(2, 5, 2, 2)
    (prediction,) = stack([maps], [slice(0, 1)])
    expected = nn.functional.interpolate(heads[0](maps), size=(20, 30), mode="bilinear")
    torch.testing.assert_close(prediction[0], expected, rtol=1e-3, atol=1e-4)


def test_weights_start_as_those_of_torch():
    torch.manual_seed(0)
    stack, head = DeconvHeads(8, 64, 4, (16, 16)), decoder(64, 4)
    for tensor, name, source in pairs(stack, 0, head):
        if name.startswith("weight"):
            assert source.std().item() == pytest.approx(tensor.std().item(), rel=0.15)
        elif not name.startswith("bias"):
            assert torch.equal(source, tensor), name


def test_autocast_computes_in_bf16_and_keeps_the_statistics_in_fp32():
    stack, _ = filled(2)
    maps = torch.randn(2, 5, 2, 2)
    (exact,) = stack.eval()([maps], [slice(0, 2)])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        (low,) = stack([maps], [slice(0, 2)])
        stack.train()([maps], [slice(0, 2)])
    assert low.dtype == torch.bfloat16
    torch.testing.assert_close(low.float(), exact, rtol=0.1, atol=0.1)
    assert {buffer.dtype for buffer in stack.buffers()} == {torch.float32}


TASKS = [
    TaskSpec("edge", "dense_regression"),
    TaskSpec("depth", "dense_regression"),
    TaskSpec("seg", "dense_classification", channels=4),
    TaskSpec("sphere", "binary"),
]
SIZE = (16, 16)


def network(init="independent"):
    torch.manual_seed(0)
    encoder = build_encoder("residual64", 3, image_size=SIZE, init=init, options={"channels": 8})
    return MultiTaskNetwork(TASKS, encoder, SIZE, decoder="deconv")


def draw(batch=3):
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (batch, 3, *SIZE), generator=generator).to(torch.uint8)
    maps = torch.randint(0, 4, (batch, 1, *SIZE), generator=generator).to(torch.uint8)
    dense = {"edge": maps, "depth": maps, "seg": maps}
    return images, (torch.ones(1, batch), dense, torch.ones(4, batch, dtype=torch.bool))


def test_a_subset_of_the_network_computes_the_same():
    whole, (images, labels) = network(), draw()
    selection = whole.select(whole.heads)
    whole(images, selection, whole.labels.targets(*labels))["losses"].sum().backward()
    assert all(p.grad is not None for p in whole.parameters())
    kept = [(0, 2), (1, 0), (2, 2), (3, 0), (1, 2)]
    small = subset(whole.eval(), kept)
    assert small.config()["decoder"] == "deconv"
    expected = whole(images, whole.select(kept), whole.labels.targets(*labels))["losses"][:, [0, 2]]
    found = small(images, small.select(small.heads), small.labels.targets(*labels))["losses"]
    torch.testing.assert_close(found, expected)
    twin = MultiTaskNetwork.from_config(json.loads(json.dumps(small.config())))
    twin.load_state_dict(small.state_dict())


def test_heads_of_a_task_start_as_copies():
    copies, (images, labels) = network("copies"), draw()
    losses = copies(images, copies.select(copies.heads), copies.labels.targets(*labels))["losses"]
    torch.testing.assert_close(losses[:, :1].expand(-1, 3), losses)


def test_an_unknown_decoder():
    encoder = build_encoder("residual64", 1, image_size=SIZE, options={"channels": 8})
    with pytest.raises(ValueError, match="decoder is 'unet', must be one of deconv, resize"):
        build_stacked_heads(TASKS[0], 1, encoder, SIZE, "unet", (8,))
