"""The linear heads of one signature: all of them are one module, computed in a few operations.

Every parameter and buffer of a stack has the heads as its leading axis, so that keeping some heads
is an `index_select(0, rows)` on each of them. A stack is called once per step for all branches.

Legend: M heads of the stack, m heads of one branch, B batch, D features, O outputs.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from model.heads.branch_products import branch_products
from model.heads.branch_rows import all_rows
from model.heads.parameters import fan_in_uniform
from model.rows import Rows


class LinearHeads(nn.Module):
    """One linear layer per head.

    Args:
        num_heads: M.
        features: Length D of a feature vector.
        outputs: Values O predicted by a head.
    """

    def __init__(self, num_heads: int, features: int, outputs: int) -> None:
        super().__init__()
        self.weight = fan_in_uniform(num_heads, outputs, features)
        self.bias = nn.Parameter(torch.zeros(num_heads, outputs))

    def forward(
        self, features: Sequence[Tensor | None], rows: Sequence[Rows | None]
    ) -> list[Tensor | None]:
        """Compute the chosen heads of each branch.

        Args:
            features: Per branch [B,D]; unused where rows is None.
            rows: Per branch the heads to compute.

        Returns:
            Per branch predictions [m,B,O], or None where rows is None.
        """
        weight, sizes = all_rows(self.weight, rows)  # [M,O,D]
        bias, _ = all_rows(self.bias, rows)
        inputs = [
            vectors
            for vectors, size in zip(features, sizes, strict=True)
            if vectors is not None and size
        ]
        counts = [size for size in sizes if size]
        outputs = self.weight.shape[1]
        products = branch_products(
            weight.flatten(0, 1), inputs, [count * outputs for count in counts]
        )  # each [m*O,B]
        predictions = (
            (product + shift.reshape(-1, 1)).unflatten(0, (-1, outputs)).transpose(1, 2)
            for product, shift in zip(products, bias.split(counts), strict=True)
        )
        return [next(predictions) if size else None for size in sizes]
