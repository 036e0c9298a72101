"""Choose the module that computes the heads of one signature."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

from dmtg.plugins import DENSE_DECODERS
from model.encoders import Encoder
from model.heads.linear import LinearHeads
from model.tasks.spec import TaskSpec


def build_stacked_heads(
    spec: TaskSpec,
    num_heads: int,
    encoder: Encoder,
    image_size: tuple[int, int],
    decoder: str,
    dense_widths: Sequence[int],
    decoder_options: Mapping[str, Any] | None = None,
) -> nn.Module:
    """Build the heads of the tasks that share the signature of `spec`.

    Args:
        image_size: H and W of a dense prediction.
        decoder: Name of the registered `DenseDecoder` of dense tasks.
        dense_widths: Channels of the stages, for a decoder that takes them.
        decoder_options: Other keywords of the decoder.

    Raises:
        ValueError: If the decoder is unknown, or an option or a width not allowed.
    """
    if decoder not in DENSE_DECODERS:
        allowed = ", ".join(DENSE_DECODERS.names())
        raise ValueError(f"model.decoder is {decoder!r}, must be one of {allowed}")
    if not spec.dense:
        height, width = encoder.spatial
        pixels = height * width if encoder.pool == "flatten" else 1
        return LinearHeads(num_heads, encoder.channels * pixels, spec.outputs)
    return _build_decoder(
        decoder,
        {
            "num_heads": num_heads,
            "channels": encoder.channels,
            "outputs": spec.outputs,
            "image_size": image_size,
        },
        {**(decoder_options or {})},
        dense_widths,
    )


def _build_decoder(
    name: str, arguments: Mapping[str, Any], options: dict[str, Any], widths: Sequence[int]
) -> nn.Module:
    entry = DENSE_DECODERS[name]
    if entry.takes_dense_widths:
        options["widths"] = widths
    try:
        inspect.signature(entry).bind(**arguments, **options)
    except TypeError as error:
        raise ValueError(f"model.decoder_options: {error} for {name}") from None
    heads: nn.Module = entry(**arguments, **options)
    for key, tensor in heads.state_dict().items():
        if tensor.shape[:1] != (arguments["num_heads"],):
            raise ValueError(
                f"model.decoder {name}: {key} has shape {tuple(tensor.shape)}, must have the "
                f"{arguments['num_heads']} heads as its leading axis"
            )
    return heads
