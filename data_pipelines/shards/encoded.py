"""An encoded sample before it is written to a shard, and the choice of encodings."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from data_pipelines.decode.codecs import encode_jpeg, encode_png
from data_pipelines.decode.planes import encode_planes
from data_pipelines.shards.manifest import Field


@dataclass(frozen=True)
class EncodedSample:
    """Bytes by member, and the scalar labels that are also stored in a JSON member."""

    key: str
    members: dict[str, bytes]
    scalars: dict[str, int | float]

    def present(self, fields: Mapping[str, Field]) -> list[str]:
        """Return the names of the fields that the sample has a value for."""
        return [
            name
            for name, field in fields.items()
            if field.member in self.members and (not field.key or field.key in self.scalars)
        ]


@dataclass(frozen=True)
class Storage:
    """The encodings of images and dense labels.

    Attributes:
        portable: PNG for both, which any reader of WebDataset shards decodes. Otherwise images
            are JPEG (quality 95, no chroma subsampling) and labels lossless planes, which decode
            several times faster.
    """

    portable: bool = False

    def image_member(self, name: str) -> str:
        """Return the member that holds the image `name`."""
        return f"{name}.png" if self.portable else f"{name}.jpg"

    def label_member(self, name: str) -> str:
        """Return the member that holds the dense label `name`."""
        return f"{name}.png" if self.portable else f"{name}.planes"

    def encode_image(self, picture: np.ndarray) -> bytes:
        """Return the bytes of uint8 [H,W] or [H,W,3]."""
        return encode_png(picture) if self.portable else encode_jpeg(picture)

    def encode_label(self, picture: np.ndarray) -> bytes:
        """Return the bytes of uint8 [H,W] or [H,W,3], or uint16 [H,W].

        Without `portable`, everything that `encode_planes` accepts is allowed.
        """
        return encode_png(picture) if self.portable else encode_planes(picture)
