"""A sample on its way to a shard, and how its pictures are stored."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from data_pipelines.decode.codecs import encode_jpeg, encode_png
from data_pipelines.decode.planes import encode_planes
from data_pipelines.shards.manifest import Field


@dataclass(frozen=True)
class EncodedSample:
    """Bytes by member, and the scalar labels that one of the members holds as JSON."""

    key: str
    members: dict[str, bytes]
    scalars: dict[str, int | float]

    def present(self, fields: Mapping[str, Field]) -> list[str]:
        """Names of the fields that the sample has a value for."""
        return [
            name
            for name, field in fields.items()
            if field.member in self.members and (not field.key or field.key in self.scalars)
        ]


@dataclass(frozen=True)
class Storage:
    """How pictures are stored.

    Attributes:
        portable: PNG throughout, which any reader of WebDataset shards knows. Otherwise images
            are JPEG (quality 95, colour at full resolution) and labels lossless planes, which
            are several times quicker to read.
    """

    portable: bool = False

    def image_member(self, name: str) -> str:
        """Member that holds the image called `name`."""
        return f"{name}.png" if self.portable else f"{name}.jpg"

    def label_member(self, name: str) -> str:
        """Member that holds the dense label called `name`."""
        return f"{name}.png" if self.portable else f"{name}.planes"

    def encode_image(self, picture: np.ndarray) -> bytes:
        """Bytes of uint8 [H,W] or [H,W,3]."""
        return encode_png(picture) if self.portable else encode_jpeg(picture)

    def encode_label(self, picture: np.ndarray) -> bytes:
        """Bytes of uint8 [H,W] or [H,W,3], or uint16 [H,W]; planes hold more, see there."""
        return encode_png(picture) if self.portable else encode_planes(picture)
