"""A bank of the published decoders, which upsample by transposed convolutions.

As in `model.heads`, every parameter and buffer has the heads as its leading axis.

Legend: M heads of the bank, m heads of one branch, B batch, C channels, O outputs,
h, w feature size, H, W image size.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.heads import fan_in_uniform
from model.rows import Rows, take

WIDTHS = (128, 64, 48, 32)


class DeconvHeads(nn.Module):
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
        return [
            None if inputs is None or chosen is None else self._decode(inputs, chosen)
            for inputs, chosen in zip(features, rows, strict=True)
        ]

    def _decode(self, maps: Tensor, rows: Rows) -> Tensor:
        weight, bias = take(self.weight, rows), take(self.bias, rows)
        num_heads = weight.shape[0]
        for stage in range(len(WIDTHS)):
            maps = self._upsample(maps, f"up{stage}", rows, groups=1 if stage == 0 else num_heads)
            if stage < len(WIDTHS) - 1:
                maps = self._convolve(maps, f"conv{stage}", rows, groups=num_heads)
        maps = F.conv2d(maps, weight.flatten(0, 1), bias.flatten(), padding=1, groups=num_heads)
        if maps.shape[-2:] != self.image_size:
            maps = F.interpolate(maps, size=self.image_size, mode="bilinear")
        return maps.unflatten(1, weight.shape[:2]).transpose(0, 1)

    def _upsample(self, maps: Tensor, layer: str, rows: Rows, groups: int) -> Tensor:
        weight, bias = self._of(layer, rows, "weight", "bias")
        # Torch has the inputs of a transposed convolution first: those of all heads one after the
        # other, or the one feature map that all heads of the branch read.
        kernel = weight.transpose(0, 1).flatten(1, 2) if groups == 1 else weight.flatten(0, 1)
        maps = F.conv_transpose2d(maps, kernel, bias.flatten(), stride=2, groups=groups)
        return self._normalise(maps, layer, rows)

    def _convolve(self, maps: Tensor, layer: str, rows: Rows, groups: int) -> Tensor:
        weight, bias = self._of(layer, rows, "weight", "bias")
        maps = F.conv2d(maps, weight.flatten(0, 1), bias.flatten(), padding=1, groups=groups)
        return self._normalise(maps, layer, rows)

    def _normalise(self, maps: Tensor, layer: str, rows: Rows) -> Tensor:
        """Apply batch normalisation and ReLU to maps [B,m*C,h,w]."""
        gain, shift, mean, variance = self._of(layer, rows, "gain", "shift", "mean", "variance")
        # Copies, because autograd keeps them and other branches write to the buffers meanwhile.
        moving = mean.flatten().clone(), variance.flatten().clone()
        maps = F.batch_norm(maps, *moving, gain.flatten(), shift.flatten(), self.training)
        if self.training:
            for name, moved in zip(("mean", "variance"), moving, strict=True):
                getattr(self, f"{name}_{layer}")[rows] = moved.view_as(mean)
        return F.relu(maps, inplace=True)

    def _of(self, layer: str, rows: Rows, *names: str) -> list[Tensor]:
        return [take(getattr(self, f"{name}_{layer}"), rows) for name in names]
