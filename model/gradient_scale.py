"""Scale the gradients that heads and branches send into the branches and the trunk.

Legend: N tasks, K branches.
"""

from __future__ import annotations

from typing import Any, Literal, get_args

import torch
from torch import Tensor

GradientScale = Literal["none", "paper", "published_code"]


def gradient_factors(
    scale: GradientScale, num_branches: int, num_tasks: int
) -> tuple[float, float]:
    """Return the factors of the gradients into the trunk and into each branch.

    K branches send a gradient into the trunk and N heads one into each branch. `paper` scales
    them by 1/sqrt(K) and 1/sqrt(N), `published_code` both by 1/sqrt(K).

    Raises:
        ValueError: If the scale is unknown.
    """
    if scale not in get_args(GradientScale):
        allowed = ", ".join(get_args(GradientScale))
        raise ValueError(f"model.gradient_scale is {scale!r}, must be one of {allowed}")
    if scale == "none":
        return 1.0, 1.0
    of_branches = num_branches**-0.5
    return of_branches, of_branches if scale == "published_code" else num_tasks**-0.5


def scale_gradient(tensor: Tensor, factor: float) -> Tensor:
    """Return the tensor; its gradient is multiplied by the factor."""
    return tensor if factor == 1 else _ScaledGradient.apply(tensor, factor)


class _ScaledGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, tensor: Tensor, factor: float) -> Tensor:  # noqa: ANN401
        ctx.factor = factor
        return tensor.view_as(tensor)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:  # noqa: ANN401
        return gradient * ctx.factor, None
