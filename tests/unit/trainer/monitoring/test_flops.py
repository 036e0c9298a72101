import pytest
import torch
from torch import nn

from trainer.monitoring.flops import flop_counter


def counted(layer, shape):
    with flop_counter() as counter:
        layer(torch.zeros(*shape, requires_grad=True)).sum().backward()
    return counter.get_total_flops()


@pytest.mark.parametrize("groups", [1, 2, 8])
def test_each_gradient_of_a_convolution_costs_what_forward_does(groups):
    layer = nn.Conv2d(8, 16, 3, padding=1, groups=groups, bias=False)
    products = 4 * 10 * 10 * 16 * (8 // groups) * 9
    assert counted(layer, (4, 8, 10, 10)) == 3 * 2 * products


@pytest.mark.parametrize("groups", [1, 4])
def test_transposed_convolutions(groups):
    layer = nn.ConvTranspose2d(8, 12, 2, stride=2, groups=groups, bias=False)
    products = 3 * 5 * 5 * 8 * (12 // groups) * 4
    assert counted(layer, (3, 8, 5, 5)) == 3 * 2 * products


def test_inputs_without_a_gradient_cost_nothing():
    layer = nn.Conv2d(4, 4, 1, groups=4, bias=False)
    with flop_counter() as counter:
        layer(torch.zeros(2, 4, 3, 3)).sum().backward()
    assert counter.get_total_flops() == 2 * 2 * (2 * 9 * 4)
