import pytest
import torch

from model.encoders import build_encoder
from model.network import MultiTaskNetwork
from model.subset import subset
from model.tasks.spec import TaskSpec


@pytest.mark.slow
def test_compiled_parts_learn_the_same_under_the_same_names():
    torch.manual_seed(0)
    encoder = build_encoder(
        "residual64", 1, image_size=(16, 16), trunk_depth=1, options={"channels": 4}
    )
    plain = MultiTaskNetwork([TaskSpec("a", "binary")], encoder, (16, 16))
    compiled = subset(plain, plain.heads)
    compiled.compile_parts()
    images = torch.randint(256, (4, 3, 16, 16), dtype=torch.uint8)
    labels = torch.tensor([[0.0, 1.0, 1.0, 0.0]])
    for network in (plain, compiled):
        targets = network.labels.targets(labels, {}, torch.ones(1, 4, dtype=torch.bool))
        network(images, network.select(network.heads), targets)["losses"].sum().backward()
    assert list(compiled.state_dict()) == list(plain.state_dict())
    for name, buffer in plain.named_buffers():
        torch.testing.assert_close(compiled.get_buffer(name), buffer)
    for name, parameter in plain.named_parameters():
        torch.testing.assert_close(
            compiled.get_parameter(name).grad, parameter.grad, rtol=1e-3, atol=1e-4
        )


@pytest.mark.slow
@pytest.mark.parametrize("activation_checkpointing", [False, True])
def test_signals_between_compiled_passes(activation_checkpointing):
    torch.manual_seed(0)
    encoder = build_encoder("residual64", 2, image_size=(16, 16), options={"channels": 4})
    plain = MultiTaskNetwork([TaskSpec("a", "binary")], encoder, (16, 16))
    compiled = subset(plain, plain.heads)
    compiled.compile_parts()
    images = torch.randint(256, (4, 3, 16, 16), dtype=torch.uint8)
    labels = torch.tensor([[0.0, 1.0, 1.0, 0.0]])
    found = []
    for network in (plain, compiled):
        network.activation_checkpointing = activation_checkpointing
        selection = network.select(network.heads)
        targets = network.labels.targets(labels, {}, torch.ones(1, 4, dtype=torch.bool))
        network(images, selection, targets)["losses"].sum().backward()
        output = network(images, selection, targets, gradient_statistics=True)
        losses, statistics = output["losses"], output["gradient_statistics"]
        losses.sum().backward()
        network(images, selection, targets)["losses"].sum().backward()
        found.append(statistics)
    assert found[0].keys() == found[1].keys() and found[0]
    for name, value in found[0].items():
        torch.testing.assert_close(found[1][name], value, rtol=1e-3, atol=1e-4)
    for name, parameter in plain.named_parameters():
        torch.testing.assert_close(
            compiled.get_parameter(name).grad, parameter.grad, rtol=1e-3, atol=1e-3
        )
