"""One crop, resize and flip for all pictures of a sample."""
# Shapes: C channels, H, W picture height and width.

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
from PIL import Image


@dataclass(frozen=True)
class Params:
    """A crop in pixels of a reference picture; integers, so that it scales exactly."""

    height: int
    width: int
    top: int
    left: int
    crop_height: int
    crop_width: int
    mirror: bool


@dataclass(frozen=True)
class Geometry:
    """How the pictures of a sample are cropped, resized and flipped.

    Attributes:
        image_size: Height and width after the transform, in pixels.
        crop: None resizes the whole picture; a number in (0, 1] first takes a random crop of the
            same aspect ratio, whose fraction of the area is uniform from that number to 1.
        flip: Mirror left and right with probability one half.
    """

    image_size: tuple[int, int]
    crop: float | None = None
    flip: bool = False

    def __post_init__(self) -> None:
        if min(self.image_size) < 1:
            raise ValueError(f"image_size: {self.image_size} must be at least 1 x 1")
        if self.crop is not None and not 0 < self.crop <= 1:
            raise ValueError(f"crop: {self.crop} must be greater than 0 and at most 1, or none")

    def draw(self, rng: np.random.Generator, height: int, width: int) -> Params:
        """Draw the transform of one sample.

        Args:
            rng: The generator of this sample.
            height: Height of the sample's image, in pixels.
            width: Width of the sample's image, in pixels.
        """
        crop_height, crop_width, top, left = height, width, 0, 0
        if self.crop is not None:
            side = math.sqrt(rng.uniform(self.crop, 1))
            crop_height = max(1, round(height * side))
            crop_width = max(1, round(width * side))
            top = int(rng.integers(height - crop_height + 1))
            left = int(rng.integers(width - crop_width + 1))
        mirror = self.flip and bool(rng.integers(2))
        return Params(height, width, top, left, crop_height, crop_width, mirror)

    def apply(
        self,
        array: np.ndarray,
        params: Params,
        interpolation: Literal["bilinear", "nearest"],
        *,
        negate_x: bool = False,
    ) -> np.ndarray:
        """Transform one picture of the sample; its resolution may differ from the image's.

        Args:
            array: [C,H,W]; uint8 with C 1 or 3 for bilinear, any dtype for nearest.
            params: The result of `draw` for the sample.
            interpolation: `bilinear` is antialiased; `nearest` never mixes values.
            negate_x: Negate the first channel of a mirrored picture: about the middle of the
                range where it is stored unsigned.

        Returns:
            [C, *image_size] in the same dtype, which may be a view of `array`.
        """
        whole = (params.crop_height, params.crop_width) == (params.height, params.width)
        if not (whole and array.shape[1:] == self.image_size):
            resize = _resize_bilinear if interpolation == "bilinear" else _resize_nearest
            array = resize(array, params, self.image_size)
        if params.mirror:
            array = array[..., ::-1]
            if negate_x:
                array = np.concatenate([_negated(array[:1]), array[1:]])
        return array


def _negated(array: np.ndarray) -> np.ndarray:
    """Negate about the middle of the range for unsigned integers, about zero otherwise."""
    return np.iinfo(array.dtype).max - array if array.dtype.kind == "u" else -array


def _resize_bilinear(array: np.ndarray, params: Params, size: tuple[int, int]) -> np.ndarray:
    if array.dtype != np.uint8 or len(array) not in (1, 3):
        raise ValueError(
            "array: bilinear needs uint8 with 1 or 3 channels, "
            f"found {array.dtype} with {len(array)}"
        )
    rows, columns = array.shape[1] / params.height, array.shape[2] / params.width
    box = (
        params.left * columns,
        params.top * rows,
        (params.left + params.crop_width) * columns,
        (params.top + params.crop_height) * rows,
    )
    pixels = array[0] if len(array) == 1 else array.transpose(1, 2, 0)  # as Pillow has them
    picture = Image.fromarray(np.ascontiguousarray(pixels))
    resized = np.asarray(picture.resize(size[::-1], Image.Resampling.BILINEAR, box))
    return resized[None] if len(array) == 1 else resized.transpose(2, 0, 1)


def _resize_nearest(array: np.ndarray, params: Params, size: tuple[int, int]) -> np.ndarray:
    rows = _nearest(size[0], array.shape[1], params.height, params.top, params.crop_height)
    columns = _nearest(size[1], array.shape[2], params.width, params.left, params.crop_width)
    return array[:, rows][:, :, columns]


def _nearest(out: int, length: int, reference: int, start: int, crop: int) -> np.ndarray:
    """Return the source index under the centre of each of `out` pixels, in integer arithmetic.

    The centre of pixel i is at (start + (i + 1/2) crop / out) length / reference.
    """
    centres = 2 * start * out + (2 * np.arange(out, dtype=np.int64) + 1) * crop
    return centres * length // (2 * out * reference)
