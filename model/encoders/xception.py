"""The published encoder for indoor scenes: a smaller Xception that keeps 1/16 of the image size.

Legend: B batch, C channels, H, W.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch.nn.functional as F
from torch import Tensor, nn

from dmtg.plugins import register_encoder
from model.bounds import MAX_WIDTH, is_count
from model.encoders.family import EncoderFamily, Option, Parts, check_option_names

SIZES = (32, 64, 128, 256, *(728,) * 9)
CHANNELS = 512
STEM_DEPTH = 2


class SeparableConv(nn.Sequential):
    """A 3x3 depthwise convolution, a 1x1 convolution and batch normalisation."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(
            nn.Conv2d(inputs, inputs, 3, padding=1, groups=inputs, bias=False),
            nn.Conv2d(inputs, outputs, 1, bias=False),
            nn.BatchNorm2d(outputs),
        )


class XceptionBlock(nn.Module):
    """Separable convolutions beside a shortcut.

    Where the number of channels changes there are two, the map is halved by a 2x2 convolution and
    the shortcut is a 1x1 convolution; else there are three, and the shortcut is the input.
    """

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.reshapes = inputs != outputs
        self.convs = nn.ModuleList(
            SeparableConv(inputs if repeat == 0 else outputs, outputs)
            for repeat in range(2 if self.reshapes else 3)
        )
        if self.reshapes:
            self.down = nn.Conv2d(outputs, outputs, 2, stride=2)
            self.skip = nn.Conv2d(inputs, outputs, 1, stride=2, bias=False)
            self.skip_norm = nn.BatchNorm2d(outputs)

    def forward(self, maps: Tensor) -> Tensor:
        """Return maps of `outputs` channels, of half the size where `inputs` is another number."""
        hidden = maps
        for conv in self.convs:
            hidden = conv(F.relu(hidden))
        if self.reshapes:
            return self.down(hidden) + self.skip_norm(self.skip(maps))
        return hidden + maps


def _stem(inputs: int, outputs: int, stride: int) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1, bias=False),
        nn.BatchNorm2d(outputs),
        nn.ReLU(),
    )


def _resolve(options: Mapping[str, Any]) -> tuple[list[int], int]:
    """Return the sizes of the stages and the channels of the output.

    Raises:
        ValueError: If an option is unknown or a value not allowed.
    """
    check_option_names("xception", options, list(Xception.documented_options))
    sizes, channels = options.get("sizes", SIZES), options.get("channels", CHANNELS)
    listed = isinstance(sizes, list | tuple) and all(is_count(size, MAX_WIDTH) for size in sizes)
    if not listed or len(sizes) < STEM_DEPTH:
        raise ValueError(
            f"model.encoder.options.sizes is {sizes!r}, "
            f"must be {STEM_DEPTH} or more integers above 0 and at most {MAX_WIDTH}"
        )
    if not is_count(channels, MAX_WIDTH):
        raise ValueError(
            f"model.encoder.options.channels is {channels!r}, "
            f"must be an integer above 0 and at most {MAX_WIDTH}"
        )
    return list(sizes), channels


@register_encoder("xception")
class Xception(EncoderFamily):
    """Stages of convolutions: the first `trunk_depth` are the trunk, the others the branch.

    A stage is a size: two convolutions, the first of stride 2, then blocks. The branch ends in
    ReLU and a separable convolution. With the published sizes the output is [B,512,H/16,W/16], and
    the published splits are trunk depths of 0, 3, 6 and 9.

    Args:
        options: See `documented_options`.
        image_size: H and W.
        pretrained: Not used.

    Raises:
        ValueError: If an option is unknown or a value not allowed.
    """

    documented_options: ClassVar[Mapping[str, Option]] = {
        "sizes": Option(
            f"a list of two or more whole numbers from 1 to {MAX_WIDTH}",
            list(SIZES),
            "Channels of the stages.",
        ),
        "channels": Option(
            f"a whole number from 1 to {MAX_WIDTH}", CHANNELS, "Channels of the output."
        ),
    }

    def __init__(
        self,
        options: Mapping[str, Any],
        image_size: tuple[int, int],
        pretrained: str | None = None,
    ) -> None:
        super().__init__(options, image_size, pretrained)
        self._sizes, self._channels = _resolve(options)

    def build_parts(self, trunk_depth: int) -> Parts:
        """Build a trunk and one branch.

        Raises:
            ValueError: If there are fewer stages, or the image size cannot be halved so often.
        """
        sizes = self._sizes
        if trunk_depth not in range(len(sizes) + 1):
            raise ValueError(
                f"model.trunk_depth is {trunk_depth!r}, must be from 0 to {len(sizes)} for xception"
            )
        inputs = sizes[STEM_DEPTH - 1 : -1]
        blocks = [XceptionBlock(i, o) for i, o in zip(inputs, sizes[STEM_DEPTH:], strict=True)]
        factor = 2 ** (1 + sum(block.reshapes for block in blocks))
        if self.image_size[0] % factor or self.image_size[1] % factor:
            raise ValueError(
                f"image_size is {tuple(self.image_size)}, must be multiples of {factor} "
                "for xception"
            )
        stages = [_stem(3, sizes[0], stride=2), _stem(sizes[0], sizes[1], stride=1), *blocks]
        trunk = nn.Sequential(*stages[:trunk_depth]) if trunk_depth else nn.Identity()
        last = nn.Sequential(nn.ReLU(), SeparableConv(sizes[-1], self._channels))
        return Parts(trunk, nn.Sequential(*stages[trunk_depth:], last))
