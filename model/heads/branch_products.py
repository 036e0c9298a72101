"""The linear layers of all branches, whose weights are one tensor; each has other features.

Legend: R rows of the weight, r those of one branch, B batch, D features.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


def branch_products(
    weight: Tensor, features: Sequence[Tensor], sizes: Sequence[int]
) -> tuple[Tensor, ...]:
    """Return per branch the product [r,B] of its rows of the weight with its features.

    The gradient of the weight is written branch by branch into one tensor. With slices of the
    weight, autograd would allocate a gradient of the whole size for each slice and add them.

    Args:
        weight: The rows of all branches, one after another, [R,D].
        features: Of every branch, [B,D].
        sizes: Rows r of every branch.
    """
    kind = weight.device.type
    if torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind):
        dtype = torch.get_autocast_dtype(kind)
        weight, features = weight.to(dtype), [inputs.to(dtype) for inputs in features]
    return _BranchProducts.apply(weight, list(sizes), *features)


class _BranchProducts(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,  # noqa: ANN401
        weight: Tensor,
        sizes: list[int],
        *features: Tensor,
    ) -> tuple[Tensor, ...]:
        ctx.sizes = sizes
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(weight, *features)
        rows = weight.split(sizes)
        return tuple(torch.mm(part, inputs.T) for part, inputs in zip(rows, features, strict=True))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *outputs: Tensor | None) -> tuple[Tensor | None, ...]:  # noqa: ANN401
        """Return the gradients; `outputs` are the gradients in the products, or None."""
        weight, *features = ctx.saved_tensors
        parts = weight.split(ctx.sizes)
        into_features = [
            None if output is None or not needed else torch.mm(output.T, rows)
            for rows, output, needed in zip(parts, outputs, ctx.needs_input_grad[2:], strict=True)
        ]
        if not ctx.needs_input_grad[0]:
            return None, None, *into_features
        into_weight = torch.empty_like(weight)
        for target, output, inputs in zip(
            into_weight.split(ctx.sizes), outputs, features, strict=True
        ):
            if output is None:
                target.zero_()
            else:
                torch.mm(output, inputs, out=target)
        return into_weight, None, *into_features
