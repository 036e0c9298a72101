"""A stack of the published decoders, which upsample by transposed convolutions.

As in `model.heads.linear`, every parameter and buffer has the heads as its leading axis.

Legend: M heads of the stack, m heads of one branch, B batch, C channels, O outputs,
h, w feature size, H, W image size.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dmtg.plugins import register_dense_decoder
from model.heads.branch_rows import rows_of_each_branch
from model.heads.dense_decoder import DenseDecoder
from model.heads.parameters import fan_in_uniform
from model.rows import Rows, take

WIDTHS = (128, 64, 48, 32)

BranchParameters = Mapping[str, Tensor]  # by name, the rows of a parameter for one branch


@register_dense_decoder("deconv")
class DeconvHeads(DenseDecoder):
    """One deconvolution decoder per head, 16 times the size of the feature map.

    Four stages of 128, 64, 48 and 32 channels: a 2x2 transposed convolution of stride 2, then, but
    in the last stage, a 3x3 convolution, each followed by batch normalisation and ReLU. A 3x3
    convolution gives the outputs, which are resized to the image where they have another size.

    The running statistics of a head move only in training passes that compute it.

    Args:
        num_heads: M.
        channels: Channels of the feature map.
        outputs: Values O predicted per pixel.
        image_size: H and W of a prediction.
    """

    def __init__(
        self, num_heads: int, channels: int, outputs: int, image_size: tuple[int, int]
    ) -> None:
        super().__init__()
        self.image_size = image_size
        # Not a ParameterList: ZeRO-3 gathers what the module that is called holds itself.
        for stage, width in enumerate(WIDTHS):
            self._add_layer(f"up{stage}", fan_in_uniform(num_heads, channels, width, 2, 2), width)
            if stage < len(WIDTHS) - 1:
                weight = fan_in_uniform(num_heads, width, width, 3, 3)
                self._add_layer(f"conv{stage}", weight, width)
            channels = width
        self.weight = fan_in_uniform(num_heads, outputs, channels, 3, 3)
        self.bias = nn.Parameter(torch.zeros(num_heads, outputs))

    def _add_layer(self, layer: str, weight: nn.Parameter, width: int) -> None:
        """Register a convolution and its batch normalisation, [M,...] each."""
        zeros, ones = torch.zeros(len(weight), width), torch.ones(len(weight), width)
        self.register_parameter(f"weight_{layer}", weight)
        self.register_parameter(f"bias_{layer}", nn.Parameter(zeros.clone()))
        self.register_parameter(f"gain_{layer}", nn.Parameter(ones.clone()))
        self.register_parameter(f"shift_{layer}", nn.Parameter(zeros.clone()))
        self.register_buffer(f"mean_{layer}", zeros)
        self.register_buffer(f"variance_{layer}", ones)

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
            None
            if maps is None or part is None or chosen is None
            else self._decode(maps, part, chosen)
            for maps, part, chosen in zip(features, parameters, rows, strict=True)
        ]

    def _decode(self, maps: Tensor, parameters: BranchParameters, rows: Rows) -> Tensor:
        """Compute the heads of a branch.

        Args:
            maps: Of the branch.
            parameters: The rows of every parameter.
            rows: The heads, which are rows of the buffers, too.
        """
        weight, bias = parameters["weight"], parameters["bias"]
        num_heads = weight.shape[0]
        for stage in range(len(WIDTHS)):
            maps = _upsample(maps, f"up{stage}", parameters, 1 if stage == 0 else num_heads)
            maps = self._normalise(maps, f"up{stage}", parameters, rows)
            if stage < len(WIDTHS) - 1:
                kernel = parameters[f"weight_conv{stage}"]
                shift = parameters[f"bias_conv{stage}"]
                maps = F.conv2d(
                    maps, kernel.flatten(0, 1), shift.flatten(), padding=1, groups=num_heads
                )
                maps = self._normalise(maps, f"conv{stage}", parameters, rows)
        maps = F.conv2d(maps, weight.flatten(0, 1), bias.flatten(), padding=1, groups=num_heads)
        if maps.shape[-2:] != self.image_size:
            maps = F.interpolate(maps, size=self.image_size, mode="bilinear")
        return maps.unflatten(1, weight.shape[:2]).transpose(0, 1)

    def _normalise(
        self, maps: Tensor, layer: str, parameters: BranchParameters, rows: Rows
    ) -> Tensor:
        """Apply batch normalisation and ReLU to maps [B,m*C,h,w]."""
        gain, shift = parameters[f"gain_{layer}"], parameters[f"shift_{layer}"]
        buffers = [self.get_buffer(f"{name}_{layer}") for name in ("mean", "variance")]
        # Autograd keeps the copies; other branches write to the buffers before the backward pass.
        mean, variance = (take(buffer, rows).flatten().clone() for buffer in buffers)
        maps = F.batch_norm(
            maps, mean, variance, gain.flatten(), shift.flatten(), training=self.training
        )
        if self.training:
            for buffer, moved in zip(buffers, (mean, variance), strict=True):
                buffer[rows] = moved.view_as(gain)
        return F.relu(maps, inplace=True)


def _upsample(maps: Tensor, layer: str, parameters: BranchParameters, groups: int) -> Tensor:
    weight, bias = parameters[f"weight_{layer}"], parameters[f"bias_{layer}"]
    # A transposed convolution has its input channels first: the channels of all heads one after
    # another, or those of the one feature map that all heads of the branch read.
    kernel = weight.transpose(0, 1).flatten(1, 2) if groups == 1 else weight.flatten(0, 1)
    return F.conv_transpose2d(maps, kernel, bias.flatten(), stride=2, groups=groups)
