import math

import pytest
import torch

from model.encoders import build_encoder
from model.gradient_scale import gradient_factors, scale_gradient
from model.network import MultiTaskNetwork
from model.subset import subset, subset_state
from model.tasks.spec import TaskSpec

SIZE = (16, 16)
TASKS = [TaskSpec(f"t{n}", "binary") for n in range(5)] + [
    TaskSpec("depth", "dense_regression"),
]
KEPT = [(n, 1) for n in range(6)]


def build(scale, num_branches=3):
    torch.manual_seed(0)
    encoder = build_encoder(
        "residual64", num_branches, image_size=SIZE, trunk_depth=1, options={"channels": 8}
    )
    return MultiTaskNetwork(
        TASKS,
        encoder,
        SIZE,
        dense_widths=(8,),
        gradient_scale=gradient_factors(scale, num_branches, len(TASKS)),
    )


def losses_and_gradients(network):
    images = torch.randint(0, 256, (4, 3, *SIZE), generator=torch.Generator().manual_seed(1))
    targets = network.labels.targets(
        torch.ones(5, 4), {"depth": torch.ones(4, 1, *SIZE)}, torch.ones(6, 4, dtype=torch.bool)
    )
    losses = network(images.to(torch.uint8), network.select(network.heads), targets)["losses"]
    losses.sum().backward()
    return losses.detach(), {name: p.grad for name, p in network.named_parameters()}


def test_factors():
    assert gradient_factors("none", 4, 9) == (1.0, 1.0)
    assert gradient_factors("paper", 4, 9) == pytest.approx((1 / 2, 1 / 3))
    assert gradient_factors("published_code", 4, 9) == pytest.approx((1 / 2, 1 / 2))
    with pytest.raises(ValueError, match="gradient_scale is 'half', must be one of none, paper"):
        gradient_factors("half", 4, 9)


def test_the_value_stays_and_the_gradient_is_scaled():
    inputs = torch.randn(3, 4, requires_grad=True)
    outputs = scale_gradient(inputs, 0.25)
    assert torch.equal(outputs, inputs)
    (outputs**2).sum().backward()
    torch.testing.assert_close(inputs.grad, 0.25 * 2 * inputs.detach())
    assert scale_gradient(inputs, 1.0) is inputs


@pytest.mark.parametrize("scale", ["paper", "published_code"])
def test_gradients_are_those_without_scaling_times_the_factors(scale):
    losses, gradients = losses_and_gradients(build(scale))
    plain_losses, plain = losses_and_gradients(build("none"))
    assert torch.equal(losses, plain_losses)
    into_trunk = 1 / math.sqrt(3)
    into_branch = 1 / math.sqrt(6 if scale == "paper" else 3)
    factors = {"stacked_heads": 1.0, "branches": into_branch, "trunk": into_branch * into_trunk}
    for name, gradient in gradients.items():
        expected = plain[name] * factors[name.partition(".")[0]]
        torch.testing.assert_close(gradient, expected, rtol=1e-4, atol=1e-6, msg=name)


def test_a_subset_keeps_the_factors_of_the_start():
    network = build("paper")
    small = subset(network, KEPT)
    assert small.num_branches == 1
    _, gradients = losses_and_gradients(small)
    bare = {**small.config(), "gradient_scale": [1.0, 1.0]}
    plain_network = MultiTaskNetwork.from_config(bare)
    plain_network.load_state_dict(subset_state(network.state_dict(), network.layout, KEPT))
    _, plain = losses_and_gradients(plain_network)
    for name, gradient in gradients.items():
        part = name.partition(".")[0]
        factor = {"stacked_heads": 1, "branches": 6**-0.5, "trunk": 18**-0.5}[part]
        torch.testing.assert_close(gradient, plain[name] * factor, rtol=1e-4, atol=1e-6, msg=name)
