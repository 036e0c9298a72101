"""Count floating-point operations, also of grouped convolutions."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

Shape = Sequence[int]


def flop_counter() -> FlopCounterMode:
    """Return a counter of all operations in its block; a multiplication and an addition are two.

    Torch's formula for the gradient of a convolution's weights ignores its groups, so its count is
    too large by the number of groups.
    """
    mapping = {torch.ops.aten.convolution_backward: _convolution_backward}
    return FlopCounterMode(display=False, custom_mapping=mapping)


def _convolution_backward(
    gradient: Shape,
    inputs: Shape,
    weight: Shape,
    _bias: object,
    _stride: object,
    _padding: object,
    _dilation: object,
    transposed: bool,
    _output_padding: object,
    _groups: object,
    wanted: Sequence[bool],
    **_: Any,  # noqa: ANN401 - other arguments of the counter
) -> int:
    """Return as many operations as forward for each of the gradients of inputs and weights."""
    places = (inputs if transposed else gradient)[2:]
    forward = 2 * inputs[0] * math.prod(places) * math.prod(weight)
    return forward * (int(wanted[0]) + int(wanted[1]))
