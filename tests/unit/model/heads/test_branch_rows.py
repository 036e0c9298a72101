import pytest
import torch

from model.heads.branch_rows import all_rows, rows_of_each_branch
from model.rows import take

PLANS = [
    [slice(0, 3), slice(3, 6)],
    [slice(1, 3), None, slice(3, 6)],
    [slice(0, 2), slice(4, 6)],
    [torch.tensor([0, 2]), None, slice(3, 6)],
    [None, torch.tensor([1, 4, 5])],
]


@pytest.mark.parametrize("rows", PLANS)
def test_every_branch_gets_its_rows_and_sends_back_their_gradient(rows):
    weight = torch.randn(6, 2, requires_grad=True)
    factors = torch.arange(1.0, 7.0).unsqueeze(1)
    found = rows_of_each_branch({"weight": weight, "twice": 2 * weight}, rows)
    assert [own is None for own in found] == [own is None for own in rows]
    for own, chosen in zip(found, rows, strict=True):
        if own is not None:
            assert torch.equal(own["weight"], take(weight, chosen))
            assert torch.equal(own["twice"], 2 * take(weight, chosen))
    present = [(own["weight"], rows[k]) for k, own in enumerate(found) if own is not None]
    sum((own * take(factors, chosen)).sum() for own, chosen in present).backward()
    expected = torch.zeros(6, 1)
    for _, chosen in present:
        expected[chosen] = factors[chosen]
    assert torch.equal(weight.grad, expected.expand(6, 2))


def test_all_rows_are_the_tensor_itself():
    weight = torch.randn(5, 2)
    taken, sizes = all_rows(weight, [slice(0, 2), None, slice(2, 5)])
    assert taken is weight and sizes == [2, 0, 3]
    taken, sizes = all_rows(weight, [slice(1, 2), slice(2, 4)])
    assert taken.data_ptr() == weight[1:].data_ptr() and sizes == [1, 2]


def test_rows_that_two_branches_share():
    weight = torch.randn(4, 3)
    taken, sizes = all_rows(weight, [slice(0, 4), slice(0, 4)])
    assert sizes == [4, 4] and torch.equal(taken, torch.cat([weight, weight]))
