"""Builds an encoder by name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, get_args

from model.encoders import backbone, mlp, residual64, xception
from model.encoders.encoder import Encoder, Init, Pool, output_shape

ENCODERS = ("residual64", "xception", "backbone", "mlp")


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
        name: residual64, xception, backbone or mlp (for vectors).
        num_branches: K.
        image_size: Height and width of the images.
        trunk_depth: Number of leading stages that all branches share.
        init: Whether the branches start different or as copies of one. Pretrained branches are
            equal in either case.
        options: Of the encoder; backbone needs `model_type` unless it is pretrained.
        pretrained: Folder with pretrained weights (backbone only).

    Raises:
        ValueError: If an argument is not allowed; the message names it, its value and what is.
    """
    if name not in ENCODERS:
        raise ValueError(f"model.encoder.name is {name!r}, must be one of {', '.join(ENCODERS)}")
    if num_branches < 1:
        raise ValueError(f"model.num_branches is {num_branches!r}, must be at least 1")
    if init not in get_args(Init):
        raise ValueError(
            f"model.branch_init is {init!r}, must be one of {', '.join(get_args(Init))}"
        )
    if min(image_size) < 1:
        raise ValueError(f"image_size is {tuple(image_size)}, must be two numbers above 0")
    options = dict(options or {})
    pool: Pool = "mean"
    in_channels = 3
    if pretrained is not None and name != "backbone":
        raise ValueError(f"model.encoder.pretrained is {pretrained!r}, must be left out for {name}")
    if name == "residual64":
        pool = "flatten"
        parts = [residual64.build_parts(options, trunk_depth) for _ in range(num_branches)]
    elif name == "xception":
        parts = [
            xception.build_parts(options, trunk_depth, image_size) for _ in range(num_branches)
        ]
    elif name == "mlp":
        parts = [mlp.build_parts(options, trunk_depth) for _ in range(num_branches)]
        in_channels = options["widths"][0]
    else:
        config = backbone.resolve_config(options, pretrained, image_size)
        options = backbone.to_options(config)
        parts = [
            backbone.build_parts(config, trunk_depth, image_size, pretrained)
            for _ in range(num_branches)
        ]
    trunk, first = parts[0]
    branches = [branch for _, branch in parts]
    if init == "copies":
        for branch in branches[1:]:
            branch.load_state_dict(first.state_dict())
    _, channels, height, width = output_shape(trunk, first, (in_channels, *image_size))
    return Encoder(
        trunk=trunk,
        branches=branches,
        in_channels=in_channels,
        channels=channels,
        spatial=(height, width),
        pool=pool,
        init=init,
        config={
            "name": name,
            "image_size": list(image_size),
            "trunk_depth": trunk_depth,
            "options": options,
        },
    )
