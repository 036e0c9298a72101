import pytest
import torch

from model.heads.branch_products import branch_products

SIZES = [2, 3, 1]


def tensors(dtype=torch.float64):
    torch.manual_seed(0)
    weight = torch.randn(6, 5, dtype=dtype, requires_grad=True)
    features = [torch.randn(4, 5, dtype=dtype, requires_grad=True) for _ in SIZES]
    return weight, features


def test_every_branch_multiplies_its_rows():
    weight, features = tensors()
    products = branch_products(weight, features, SIZES)
    for product, rows, own in zip(products, weight.split(SIZES), features, strict=True):
        torch.testing.assert_close(product, rows @ own.T)


def test_gradients_are_those_of_finite_differences():
    weight, features = tensors()
    assert torch.autograd.gradcheck(
        lambda first, *others: branch_products(first, others, SIZES), (weight, *features)
    )


def test_a_branch_that_is_not_used_has_a_gradient_of_zero_in_the_weight():
    weight, features = tensors()
    branch_products(weight, features, SIZES)[1].sum().backward()
    assert features[0].grad is None and features[2].grad is None
    torch.testing.assert_close(features[1].grad, weight[2:5].sum(dim=0).expand(4, 5))
    expected = torch.zeros(6, 5, dtype=torch.float64)
    expected[2:5] = features[1].sum(dim=0)
    torch.testing.assert_close(weight.grad, expected)


def test_a_frozen_weight_gets_none():
    weight, features = tensors()
    sum(p.sum() for p in branch_products(weight.detach(), features, SIZES)).backward()
    torch.testing.assert_close(features[2].grad, weight[5].expand(4, 5))


def test_lower_precision_where_autocast_asks_for_it():
    weight, features = tensors(torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        products = branch_products(weight, features, SIZES)
    assert all(product.dtype == torch.bfloat16 for product in products)
    sum(product.float().sum() for product in products).backward()
    assert weight.grad.dtype == torch.float32
    torch.testing.assert_close(
        weight.grad[2:5], features[1].sum(dim=0).expand(3, 5), rtol=2e-2, atol=2e-2
    )


@pytest.mark.parametrize("device", ["meta"])
def test_shapes_can_be_had_without_storage(device):
    weight, features = (torch.empty(6, 5, device=device), [torch.empty(4, 5, device=device)] * 3)
    assert [p.shape for p in branch_products(weight, features, SIZES)] == [(2, 4), (3, 4), (1, 4)]
