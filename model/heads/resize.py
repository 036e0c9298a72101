"""A stack of decoders that upsample by bilinear interpolation, the decoder `resize`.

As in `model.heads.linear`, every parameter has the heads as its leading axis.

Legend: M heads of the stack, m heads of one branch, B batch, C channels, O outputs,
h, w feature size, H, W image size.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dmtg.plugins import register_dense_decoder
from model.heads.branch_rows import rows_of_each_branch
from model.heads.dense_decoder import DenseDecoder
from model.heads.parameters import fan_in_uniform
from model.rows import Rows

GROUP_WIDTH = 8


@register_dense_decoder("resize")
class DenseHeads(DenseDecoder):
    """One upsampling decoder per head.

    A stage is a 3x3 convolution, a normalisation over groups of channels of one sample (so that
    neither the batch nor other heads matter), ReLU and bilinear x2. A 3x3 convolution gives the
    outputs, which are resized to the image where they have another size.

    Args:
        num_heads: M.
        channels: Channels of the feature map.
        outputs: Values O predicted per pixel.
        widths: Channels after each stage.
        image_size: H and W of a prediction.

    Raises:
        ValueError: If a width is not a positive multiple of 8.
    """

    takes_dense_widths: ClassVar[bool] = True

    def __init__(
        self,
        num_heads: int,
        channels: int,
        outputs: int,
        widths: Sequence[int],
        image_size: tuple[int, int],
    ) -> None:
        super().__init__()
        if any(width < 1 or width % GROUP_WIDTH for width in widths):
            raise ValueError(
                f"dense_widths is {tuple(widths)}, must be positive multiples of {GROUP_WIDTH}"
            )
        self.image_size = image_size
        self.num_stages = len(widths)
        # Not a ParameterList: ZeRO-3 gathers what the module that is called holds itself.
        for stage, width in enumerate(widths):
            self.register_parameter(
                f"weight{stage}", fan_in_uniform(num_heads, width, channels, 3, 3)
            )
            self.register_parameter(f"gain{stage}", nn.Parameter(torch.ones(num_heads, width)))
            self.register_parameter(f"shift{stage}", nn.Parameter(torch.zeros(num_heads, width)))
            channels = width
        self.weight = fan_in_uniform(num_heads, outputs, channels, 3, 3)
        self.bias = nn.Parameter(torch.zeros(num_heads, outputs))

    def forward(
        self, features: Sequence[Tensor | None], rows: Sequence[Rows | None]
    ) -> list[Tensor | None]:
        """Compute the chosen heads of each branch.

        Args:
            features: Per branch [B,C,h,w]; unused where rows is None.
            rows: Per branch the heads to compute.

        Returns:
            Per branch predictions [m,B,O,H,W], or None where rows is None.
        """
        parameters = rows_of_each_branch(dict(self.named_parameters()), rows)
        return [
            None if maps is None or rows_of_branch is None else self._decode(maps, rows_of_branch)
            for maps, rows_of_branch in zip(features, parameters, strict=True)
        ]

    def _decode(self, maps: Tensor, parameters: Mapping[str, Tensor]) -> Tensor:
        """Compute the heads of a branch from its map and its rows of every parameter."""
        groups = 1  # all heads of the branch read the same feature map, later each its own maps
        for stage in range(self.num_stages):
            names = (f"{name}{stage}" for name in ("weight", "gain", "shift"))
            weight, gain, shift = (parameters[name] for name in names)
            maps = F.conv2d(maps, weight.flatten(0, 1), padding=1, groups=groups)  # [B,m*c,h,w]
            num_groups = maps.shape[1] // GROUP_WIDTH
            maps = F.group_norm(maps, num_groups, gain.flatten(), shift.flatten())
            maps = F.interpolate(F.relu(maps), scale_factor=2, mode="bilinear")
            groups = weight.shape[0]
        weight, bias = parameters["weight"], parameters["bias"]
        maps = F.conv2d(maps, weight.flatten(0, 1), bias.flatten(), padding=1, groups=groups)
        if maps.shape[-2:] != self.image_size:
            maps = F.interpolate(maps, size=self.image_size, mode="bilinear")
        return maps.unflatten(1, weight.shape[:2]).transpose(0, 1)
