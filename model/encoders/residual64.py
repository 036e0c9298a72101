"""The published encoder for 64-pixel images: a convolutional stem and one residual block.

Legend: B batch, C channels.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch.nn.functional as F
from torch import Tensor, nn

from dmtg.plugins import register_encoder
from model.bounds import MAX_WIDTH, is_count
from model.encoders.encoder import Pool
from model.encoders.family import EncoderFamily, Option, Parts, check_option_names
from model.encoders.pooled_stem import PooledStem

CHANNELS = 64
MAX_TRUNK_DEPTH = 1


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions with batch normalisation and an identity shortcut."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(channels)

    def forward(self, maps: Tensor) -> Tensor:
        """Return maps [B,C,H,W] of the same shape."""
        hidden = F.relu(self.norm1(self.conv1(maps)))
        return F.relu(self.norm2(self.conv2(hidden)) + maps)


@register_encoder("residual64")
class Residual64(EncoderFamily):
    """A convolutional stem and a residual block.

    With 64x64 images and 64 channels the output is [B,64,15,15], 14,400 features. A trunk depth of
    1 puts the stem into the trunk, 0 into the branch.

    Args:
        options: See `documented_options`.
        image_size: H and W.
        pretrained: Not used.

    Raises:
        ValueError: If an option is unknown or a value not allowed.
    """

    pool: ClassVar[Pool] = "flatten"
    documented_options: ClassVar[Mapping[str, Option]] = {
        "channels": Option(
            f"a whole number from 1 to {MAX_WIDTH}", CHANNELS, "Channels of all maps."
        )
    }

    def __init__(
        self,
        options: Mapping[str, Any],
        image_size: tuple[int, int],
        pretrained: str | None = None,
    ) -> None:
        super().__init__(options, image_size, pretrained)
        check_option_names("residual64", options, list(self.documented_options))
        channels = options.get("channels", CHANNELS)
        if not is_count(channels, MAX_WIDTH):
            raise ValueError(
                f"model.encoder.options.channels is {channels!r}, "
                f"must be an integer above 0 and at most {MAX_WIDTH}"
            )
        self._channels = channels

    def build_parts(self, trunk_depth: int) -> Parts:
        """Build a trunk and one branch.

        Raises:
            ValueError: If the depth is neither 0 nor 1.
        """
        if trunk_depth not in range(MAX_TRUNK_DEPTH + 1):
            raise ValueError(
                f"model.trunk_depth is {trunk_depth!r}, "
                f"must be 0 or {MAX_TRUNK_DEPTH} for residual64"
            )
        stem = PooledStem(self._channels)
        block = nn.Sequential(ResidualBlock(self._channels), nn.AvgPool2d(2))
        if trunk_depth:
            return Parts(stem, block)
        return Parts(nn.Identity(), nn.Sequential(stem, block))
