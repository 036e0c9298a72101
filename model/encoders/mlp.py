"""Fully connected layers for inputs that are vectors, such as the features of a frozen model.

A vector of D numbers is given as an image of D channels and one pixel, [B,D,1,1], in floats.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from typing import Any

from torch import nn


def build_parts(options: Mapping[str, Any], trunk_depth: int) -> tuple[nn.Module, nn.Module]:
    """Build a trunk and one branch: linear layers with ReLU between them, none after the last.

    Args:
        options: `widths`: of the input, of every hidden layer and of the output.
        trunk_depth: Number of leading hidden layers that all branches share.

    Raises:
        ValueError: If an option is unknown or a value not allowed.
    """
    unknown = sorted(set(options) - {"widths"})
    if unknown:
        raise ValueError(f"model.encoder.options has {unknown[0]!r}, mlp knows only 'widths'")
    widths = options.get("widths")
    if (
        not isinstance(widths, (list, tuple))
        or len(widths) < 2
        or not all(isinstance(width, int) and width > 0 for width in widths)
    ):
        raise ValueError(
            f"model.encoder.options.widths is {widths!r}, must be two or more numbers above 0"
        )
    if trunk_depth not in range(len(widths) - 1):
        raise ValueError(
            f"model.trunk_depth is {trunk_depth!r}, must be from 0 to {len(widths) - 2} "
            f"for an mlp of widths {list(widths)}"
        )
    layers: list[nn.Module] = [
        nn.Sequential(nn.Linear(inputs, outputs), nn.ReLU()) for inputs, outputs in pairwise(widths)
    ]
    layers[-1] = layers[-1][0]  # type: ignore[index]
    layers[0] = nn.Sequential(nn.Flatten(), layers[0])
    layers[-1] = nn.Sequential(layers[-1], nn.Unflatten(1, (widths[-1], 1, 1)))
    trunk = nn.Sequential(*layers[:trunk_depth]) if trunk_depth else nn.Identity()
    return trunk, nn.Sequential(*layers[trunk_depth:])
