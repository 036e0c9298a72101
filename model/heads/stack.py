"""Which module computes the heads of one signature."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, get_args

from torch import nn

from model.encoders import Encoder
from model.heads.deconv import DeconvHeads
from model.heads.linear import LinearHeads
from model.heads.resize import DenseHeads
from model.tasks.spec import TaskSpec

Decoder = Literal["resize", "deconv"]


def build_stacked_heads(
    spec: TaskSpec,
    num_heads: int,
    encoder: Encoder,
    image_size: tuple[int, int],
    decoder: Decoder,
    dense_widths: Sequence[int],
) -> nn.Module:
    """Build the heads of the tasks that share the signature of `spec`.

    Args:
        image_size: H and W of a dense prediction.
        decoder: Of dense tasks.
        dense_widths: Channels of the stages of the decoder `resize`.

    Raises:
        ValueError: If the decoder is unknown or a width not allowed.
    """
    if decoder not in get_args(Decoder):
        allowed = ", ".join(get_args(Decoder))
        raise ValueError(f"model.decoder is {decoder!r}, must be one of {allowed}")
    if not spec.dense:
        height, width = encoder.spatial
        pixels = height * width if encoder.pool == "flatten" else 1
        return LinearHeads(num_heads, encoder.channels * pixels, spec.outputs)
    if decoder == "deconv":
        return DeconvHeads(num_heads, encoder.channels, spec.outputs, image_size)
    return DenseHeads(num_heads, encoder.channels, spec.outputs, dense_widths, image_size)
