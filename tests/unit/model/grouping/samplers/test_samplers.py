"""What holds for every sampler, and the registered names."""
# Legend: N tasks, K branches, S samples.

import pytest
import torch

from dmtg.plugins import SAMPLERS
from model.grouping.grouping import gumbel_noise

NAMES = ("diagonal", "gumbel", "gumbel_per_sample", "relaxed_one_hot", "softmax",
         "straight_through")  # fmt: skip


def logits(num_tasks=4, num_branches=3):
    values = torch.randn(num_tasks, num_branches, generator=torch.Generator().manual_seed(0))
    return values.requires_grad_()


def test_names():
    assert SAMPLERS.names() == NAMES
    assert [name for name in NAMES if SAMPLERS[name].per_sample] == ["gumbel_per_sample"]


@pytest.mark.parametrize("name", NAMES)
def test_weights_are_distributions_over_the_branches_that_are_on(name):
    sampler, values = SAMPLERS[name](), logits()
    masked = values if name == "diagonal" else values.masked_fill(torch.eye(4, 3) > 0, -torch.inf)
    shape = (4, 3, 5) if sampler.per_sample else (4, 3)
    weights = sampler.weights(masked, gumbel_noise(shape, 0, 1), 0.5)
    assert weights.shape == shape
    torch.testing.assert_close(weights.sum(dim=1), torch.ones(4, *shape[2:]))
    if name != "diagonal":
        assert not weights[torch.eye(4, 3) > 0].any()
    probabilities = sampler.probabilities(masked)
    torch.testing.assert_close(probabilities.sum(dim=1), torch.ones(4))


@pytest.mark.parametrize("name", ["gumbel", "gumbel_per_sample", "straight_through"])
def test_relaxations_in_numpy(name):
    """softmax((logits + noise) / temperature), written as exponentials."""
    sampler, values = SAMPLERS[name](), logits()
    noise = gumbel_noise((4, 3, 5) if sampler.per_sample else (4, 3), 0, 1)
    inner = values.detach()[..., None] if sampler.per_sample else values.detach()
    powers = ((inner + noise) / 0.7).double().numpy()
    expected = torch.from_numpy(2.718281828459045**powers)
    expected = expected / expected.sum(dim=1, keepdim=True)
    weights = sampler.weights(values, noise, 0.7).detach().double()
    if name == "straight_through":
        assert torch.equal(weights.sum(dim=1), torch.ones(4, dtype=torch.float64))
        assert torch.equal(weights.argmax(dim=1), expected.argmax(dim=1))
    else:
        torch.testing.assert_close(weights, expected, rtol=1e-5, atol=1e-7)


def test_diagonal_is_fixed():
    weights = SAMPLERS["diagonal"]().weights(logits(), torch.zeros(4, 3), 1.0)
    assert weights.tolist() == [[1, 0, 0], [0, 1, 0], [0, 0, 1], [1, 0, 0]]
    assert not weights.requires_grad
