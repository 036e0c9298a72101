"""Samples built from the bytes of their members: decoded, checked, transformed."""
# Shapes: N tasks, N_s scalar tasks, C channels, H, W of the geometry's image_size.

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from data_pipelines.decode.codecs import decode_sample
from data_pipelines.errors import DataError
from data_pipelines.reading.fields import Label, labels_of_source
from data_pipelines.shards.manifest import Manifest
from data_pipelines.transforms import Geometry, Params


@dataclass(frozen=True, eq=False)
class Sample:
    """One sample as arrays; a filler or a replaced sample has an empty key and no valid label."""

    key: str
    image: np.ndarray  # [3,H,W] uint8
    scalars: np.ndarray  # [N_s] float32, 0 where invalid
    dense: dict[str, np.ndarray]  # task -> [C,H,W] as stored; a missing label is absent
    valid: np.ndarray  # [N] bool
    damage: str = ""  # the error of a damaged sample that was replaced by this one


class SampleBuilder:
    """Build the samples of one split.

    Args:
        image_member: The member that is the input, such as `rgb.jpg`.
        labels: One per task, in the order of `Sample.valid`.
        geometry: Crop, resize and flip of the pictures.
    """

    def __init__(self, image_member: str, labels: Sequence[Label], geometry: Geometry) -> None:
        self.image_member = image_member
        self.labels = tuple(labels)
        self.geometry = geometry
        stored = (label.field.member for label in labels if not label.absent)
        self.members = frozenset({image_member, *stored})
        self.num_scalars = sum(label.field.is_scalar for label in labels)

    def build(self, key: str, members: Mapping[str, bytes], rng: np.random.Generator) -> Sample:
        """Return the sample of its members' bytes; a label whose member is absent is missing.

        Args:
            key: Name of the sample.
            members: Bytes by suffix.
            rng: The generator of this sample.

        Raises:
            DataError: A member is damaged or has a value that its field does not allow.
        """
        decoded = decode_sample(self.image_member, members)
        picture = _checked_image(self.image_member, decoded)
        params = self.geometry.draw(rng, *picture.shape[1:])
        image = self.geometry.apply(picture, params, "bilinear")
        image = np.broadcast_to(image, (3, *image.shape[1:]))
        return self._with_labels(key, image, decoded, params)

    def blank(self, damage: str = "") -> Sample:
        """Return a sample without labels: a filler, or the replacement of a damaged sample."""
        scalars = np.zeros(self.num_scalars, np.float32)
        image = np.zeros((3, *self.geometry.image_size), np.uint8)
        return Sample("", image, scalars, {}, np.zeros(len(self.labels), bool), damage)

    def _with_labels(
        self, key: str, image: np.ndarray, decoded: dict[str, Any], params: Params
    ) -> Sample:
        scalars = np.zeros(self.num_scalars, np.float32)
        valid = np.zeros(len(self.labels), bool)
        dense = {}
        row = -1
        for number, label in enumerate(self.labels):
            row += label.field.is_scalar
            content = None if label.absent else decoded.get(label.field.member)
            if content is None:
                continue
            if label.field.is_scalar:
                value = label.scalar(content)
                if value is None:
                    continue
                scalars[row] = value
            else:
                dense[label.task] = self._dense(label, content, params)
            valid[number] = True
        return Sample(key, image, scalars, dense, valid)

    def _dense(self, label: Label, picture: np.ndarray, params: Params) -> np.ndarray:
        _check_dense(label, picture, params)
        return self.geometry.apply(
            picture[: label.channels],
            params,
            "nearest",
            negate_x=label.field.on_flip == "negate_x",
        )


def builders_by_source(
    manifest: Manifest, labels: Sequence[Label], geometry: Geometry
) -> dict[str | None, SampleBuilder]:
    """Return what builds the samples of each source; without sources that of None.

    Args:
        manifest: Manifest of the shards.
        labels: One per task, as `resolve_labels` returns them.
        geometry: Crop, resize and flip of the pictures.
    """
    sources: Iterable[str | None] = manifest.sources or (None,)
    return {
        source: SampleBuilder(
            manifest.image_member(source), labels_of_source(manifest, labels, source), geometry
        )
        for source in sources
    }


def _checked_image(member: str, decoded: dict[str, Any]) -> np.ndarray:
    picture = decoded.get(member)
    if picture is None:
        raise DataError(f"no member {member}, every sample needs its image")
    if picture.dtype != np.uint8 or len(picture) not in (1, 3):
        raise DataError(
            f"{member} is {picture.dtype} with {len(picture)} channels, an image is uint8 with "
            "1 or 3"
        )
    return picture


def _check_dense(label: Label, picture: np.ndarray, image: Params) -> None:
    label.check_picture(picture)
    _, height, width = picture.shape
    # Halving an odd side changes the aspect ratio by up to one pixel.
    if abs(height * image.width - width * image.height) > max(image.height, image.width):
        raise DataError(
            f"field {label.request.field}: {label.field.member} is {height} x {width}, another "
            f"shape than the image's {image.height} x {image.width}"
        )
