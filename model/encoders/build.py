"""Build an encoder by name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, get_args

from dmtg.plugins import ENCODERS
from model.bounds import MAX_BRANCHES, MAX_IMAGE_SIDE, is_count
from model.encoders.encoder import Encoder, Init, output_shape
from model.encoders.family import EncoderFamily, Parts
from model.encoders.plain_options import check_plain_options


def build_encoder(
    name: str,
    num_branches: int,
    *,
    image_size: tuple[int, int],
    trunk_depth: int = 0,
    init: Init = "independent",
    options: Mapping[str, Any] | None = None,
    pretrained: str | bool | None = None,
    feature_shape: tuple[int, int, int] | None = None,
) -> Encoder:
    """Build a trunk and `num_branches` branches.

    Args:
        name: Of a registered `EncoderFamily`; built in are backbone, timm, residual64, xception
            and mlp (for vectors).
        num_branches: K.
        image_size: Height and width of the images.
        trunk_depth: Number of leading stages that all branches share.
        init: Whether the branches start different or as copies of one. Pretrained branches are
            equal in either case.
        options: Of the encoder; backbone needs `model_type` unless it is pretrained, timm `model`.
        pretrained: Folder, or repository of the hub, with pretrained weights, for an encoder that
            takes them; True for those that timm names.
        feature_shape: Shape [C,h,w] of a branch's output if it is known. The encoder is then not
            run on an image, and `EncoderFamily.finish` is not called.

    Raises:
        ValueError: If an argument is not allowed; the message names it, its value and what is.
    """
    if name not in ENCODERS:
        allowed = ", ".join(ENCODERS.names())
        raise ValueError(f"model.encoder.name is {name!r}, must be one of {allowed}")
    if not is_count(num_branches, MAX_BRANCHES):
        raise ValueError(
            f"model.num_branches is {num_branches!r}, must be at least 1 and at most {MAX_BRANCHES}"
        )
    if init not in get_args(Init):
        raise ValueError(
            f"model.branch_init is {init!r}, must be one of {', '.join(get_args(Init))}"
        )
    if len(image_size) != 2 or not all(is_count(side, MAX_IMAGE_SIDE) for side in image_size):
        raise ValueError(
            f"image_size is {tuple(image_size)}, must be two numbers above 0 and at most "
            f"{MAX_IMAGE_SIDE}"
        )
    family = encoder_family(name, options or {}, image_size, pretrained)
    finished = feature_shape is None
    trunk, first = _build_parts(family, trunk_depth, finished=finished)
    # The other trunks are not kept: there may be many branches behind a large trunk.
    others = [
        _build_parts(family, trunk_depth, finished=finished).branch for _ in range(num_branches - 1)
    ]
    if init == "copies":
        for branch in others:
            branch.load_state_dict(first.state_dict())
    if feature_shape is None:
        shape = output_shape(trunk, first, (family.in_channels, *image_size))
        feature_shape = (shape[1], shape[2], shape[3])
    channels, height, width = feature_shape
    return Encoder(
        trunk=trunk,
        branches=[first, *others],
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
        image_mean=family.image_mean,
        image_std=family.image_std,
    )


def _build_parts(family: EncoderFamily, trunk_depth: int, *, finished: bool) -> Parts:
    parts = family.build_parts(trunk_depth)
    if finished:
        family.finish(parts)
    return parts


def encoder_family(
    name: str,
    options: Mapping[str, Any],
    image_size: tuple[int, int],
    pretrained: str | bool | None = None,
) -> EncoderFamily:
    """Return an encoder's family with its options resolved; nothing is built yet.

    Raises:
        ValueError: If the name, an option or `pretrained` is not allowed.
    """
    check_plain_options(options)
    entry = ENCODERS[name]
    if pretrained is not None and not entry.takes_pretrained:
        raise ValueError(f"model.encoder.pretrained is {pretrained!r}, must be left out for {name}")
    if pretrained is True and not entry.has_default_weights:
        raise ValueError(
            f"model.encoder.pretrained is true, must be a folder or a repository for {name}"
        )
    family: EncoderFamily = entry(options, image_size, pretrained)
    return family
