"""Fully connected layers for inputs that are vectors, such as the features of a frozen model.

A vector of D numbers is given as an image of D channels and one pixel, [B,D,1,1], in floats.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from typing import Any, ClassVar

from torch import nn

from dmtg.plugins import register_encoder
from model.bounds import MAX_WIDTH, is_count
from model.encoders.family import EncoderFamily, Option, Parts, check_option_names


@register_encoder("mlp")
class Mlp(EncoderFamily):
    """Linear layers with ReLU between them, none after the last.

    The first `trunk_depth` hidden layers are the trunk.

    Args:
        options: See `documented_options`.
        image_size: H and W, both 1.
        pretrained: Not used.

    Raises:
        ValueError: If an option is unknown or a value not allowed.
    """

    documented_options: ClassVar[Mapping[str, Option]] = {
        "widths": Option(
            f"a list of two or more whole numbers from 1 to {MAX_WIDTH}",
            None,
            "Widths of the input, of every hidden layer and of the output; required.",
        )
    }

    def __init__(
        self,
        options: Mapping[str, Any],
        image_size: tuple[int, int],
        pretrained: str | None = None,
    ) -> None:
        super().__init__(options, image_size, pretrained)
        check_option_names("mlp", options, list(self.documented_options))
        widths = options.get("widths")
        if (
            not isinstance(widths, (list, tuple))
            or len(widths) < 2
            or not all(is_count(width, MAX_WIDTH) for width in widths)
        ):
            raise ValueError(
                f"model.encoder.options.widths is {widths!r}, must be two or more numbers above 0 "
                f"and at most {MAX_WIDTH}"
            )
        self._widths = list(widths)
        self.in_channels = widths[0]

    def build_parts(self, trunk_depth: int) -> Parts:
        """Build a trunk and one branch.

        Raises:
            ValueError: If there are fewer hidden layers than `trunk_depth`.
        """
        widths = self._widths
        if trunk_depth not in range(len(widths) - 1):
            raise ValueError(
                f"model.trunk_depth is {trunk_depth!r}, must be from 0 to {len(widths) - 2} "
                f"for an mlp of widths {widths}"
            )
        layers: list[nn.Module] = [
            nn.Sequential(nn.Linear(inputs, outputs), nn.ReLU())
            for inputs, outputs in pairwise(widths)
        ]
        layers[-1] = layers[-1][0]  # type: ignore[index]
        layers[0] = nn.Sequential(nn.Flatten(), layers[0])
        layers[-1] = nn.Sequential(layers[-1], nn.Unflatten(1, (widths[-1], 1, 1)))
        trunk = nn.Sequential(*layers[:trunk_depth]) if trunk_depth else nn.Identity()
        return Parts(trunk, nn.Sequential(*layers[trunk_depth:]))
