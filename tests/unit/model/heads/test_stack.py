import pytest
import torch

from model.heads.linear import LinearHeads
from model.heads.resize import DenseHeads


@pytest.mark.parametrize(
    "stack", [LinearHeads(6, 7, 3), DenseHeads(6, 7, 3, (8,), (4, 4))], ids=["linear", "dense"]
)
def test_every_parameter_is_stacked_and_cut_rows_compute_the_same(stack):
    assert {parameter.shape[0] for parameter in stack.parameters()} == {6}
    features = torch.randn(2, 7) if isinstance(stack, LinearHeads) else torch.randn(2, 7, 2, 2)
    rows = torch.tensor([1, 4])
    small = type(stack)(2, 7, 3, *(() if isinstance(stack, LinearHeads) else ((8,), (4, 4))))
    small.load_state_dict({k: v.index_select(0, rows) for k, v in stack.state_dict().items()})
    torch.testing.assert_close(small([features], [slice(0, 2)])[0], stack([features], [rows])[0])
