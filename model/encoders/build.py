"""Build an encoder by name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, get_args

from dmtg.plugins import ENCODERS
from model.encoders.encoder import Encoder, Init, output_shape
from model.encoders.family import EncoderFamily


def build_encoder(
    name: str,
    num_branches: int,
    *,
    image_size: tuple[int, int],
    trunk_depth: int = 0,
    init: Init = "independent",
    options: Mapping[str, Any] | None = None,
    pretrained: str | None = None,
) -> Encoder:
    """Build a trunk and `num_branches` branches.

    Args:
        name: Of a registered `EncoderFamily`; built in are residual64, xception, backbone and mlp
            (for vectors).
        num_branches: K.
        image_size: Height and width of the images.
        trunk_depth: Number of leading stages that all branches share.
        init: Whether the branches start different or as copies of one. Pretrained branches are
            equal in either case.
        options: Of the encoder; backbone needs `model_type` unless it is pretrained.
        pretrained: Folder with pretrained weights, for an encoder that takes them.

    Raises:
        ValueError: If an argument is not allowed; the message names it, its value and what is.
    """
    if name not in ENCODERS:
        allowed = ", ".join(ENCODERS.names())
        raise ValueError(f"model.encoder.name is {name!r}, must be one of {allowed}")
    if num_branches < 1:
        raise ValueError(f"model.num_branches is {num_branches!r}, must be at least 1")
    if init not in get_args(Init):
        raise ValueError(
            f"model.branch_init is {init!r}, must be one of {', '.join(get_args(Init))}"
        )
    if min(image_size) < 1:
        raise ValueError(f"image_size is {tuple(image_size)}, must be two numbers above 0")
    family = encoder_family(name, options or {}, image_size, pretrained)
    parts = [family.build_parts(trunk_depth) for _ in range(num_branches)]
    trunk, first = parts[0]
    branches = [branch for _, branch in parts]
    if init == "copies":
        for branch in branches[1:]:
            branch.load_state_dict(first.state_dict())
    _, channels, height, width = output_shape(trunk, first, (family.in_channels, *image_size))
    return Encoder(
        trunk=trunk,
        branches=branches,
        in_channels=family.in_channels,
        channels=channels,
        spatial=(height, width),
        pool=family.pool,
        init=init,
        config={
            "name": name,
            "image_size": list(image_size),
            "trunk_depth": trunk_depth,
            "options": family.options,
        },
    )


def encoder_family(
    name: str,
    options: Mapping[str, Any],
    image_size: tuple[int, int],
    pretrained: str | None = None,
) -> EncoderFamily:
    """Return an encoder's family with its options resolved; nothing is built yet.

    Raises:
        ValueError: If the name, an option or `pretrained` is not allowed.
    """
    entry = ENCODERS[name]
    if pretrained is not None and not entry.takes_pretrained:
        raise ValueError(f"model.encoder.pretrained is {pretrained!r}, must be left out for {name}")
    family: EncoderFamily = entry(options, image_size, pretrained)
    return family
