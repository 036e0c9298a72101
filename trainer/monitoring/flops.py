"""Counts floating-point operations, those of grouped convolutions as well."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

Shape = Sequence[int]


def flop_counter() -> FlopCounterMode:
    """A counter of all operations while it is open; a multiplication and an addition are two.

    Torch's own formula takes every gradient of a convolution's weights for one between all
    channels, which is too much by the number of its groups.
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
    **_: Any,  # noqa: ANN401 - what the counter passes beside
) -> int:
    """As many operations as forward for each of the gradients of inputs and weights."""
    places = (inputs if transposed else gradient)[2:]
    forward = 2 * inputs[0] * math.prod(places) * math.prod(weight)
    return forward * (int(wanted[0]) + int(wanted[1]))
