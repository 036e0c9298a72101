"""Start values of stacked weights."""

from __future__ import annotations

import math

import torch
from torch import nn


def fan_in_uniform(*shape: int) -> nn.Parameter:
    """Return weights [M, out, ...] of M heads, drawn as torch's linear and convolution layers do.

    The values are uniform within 1/sqrt(fan_in) of zero.
    """
    bound = 1 / math.sqrt(math.prod(shape[2:]))
    return nn.Parameter(torch.empty(shape).uniform_(-bound, bound))
