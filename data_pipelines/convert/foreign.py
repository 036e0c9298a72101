"""Pictures of other datasets in common formats, converted to images or label values."""
# Shapes: C channels, H, W.

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from PIL import Image

from data_pipelines.convert.pictures import shrunk, stored_image
from data_pipelines.convert.tally import MissingLabel
from data_pipelines.decode.codecs import MAX_PIXELS, PILLOW_ERRORS, decode
from data_pipelines.errors import DataError
from data_pipelines.shards.encoded import Storage

_FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF", "PPM")
_JPEG_START = b"\xff\xd8"
_GREY_MODES = ("L", "P", "RGB", "F", "I", "I;16", "I;16B", "I;16L")  # stored values, unchanged


def convert_image(
    storage: Storage, data: bytes, image_size: int | None
) -> tuple[bytes, tuple[int, int]]:
    """Convert a source image to the bytes of a member.

    A JPEG that keeps its size is copied byte for byte, without loss.

    Args:
        storage: The encoding of images.
        data: Content of the source file.
        image_size: Pixels of the shorter side; None keeps it.

    Returns:
        The bytes, and height and width of the source.

    Raises:
        MissingLabel: The picture is damaged, too large or of another format.
    """
    picture = _plain_jpeg(data)
    if picture is not None and not storage.portable:
        height, width = picture.shape[1:]
        if shrunk((height, width), image_size) == (height, width):
            return data, (height, width)
    if picture is None:
        with _opened(data) as image:
            picture = np.asarray(image.convert("RGB")).transpose(2, 0, 1)
    return stored_image(storage, picture, image_size), picture.shape[1:]


def label_picture(data: bytes, dtype: str | None = None) -> np.ndarray:
    """Return the values of a label picture, see `label_values`; of a palette image, its indices.

    Raises:
        MissingLabel: The picture is damaged, too large or of another format, or a value does
            not fit the type.
    """
    with _opened(data) as image:
        if image.mode not in _GREY_MODES:
            raise MissingLabel(f"picture of mode {image.mode}")
        return label_values(np.asarray(image), dtype)


def label_values(values: np.ndarray, dtype: str | None = None) -> np.ndarray:
    """Convert values [H,W] or [H,W,C] to [C,H,W] in a type that can be stored.

    Args:
        values: Any numbers.
        dtype: Type to store; None takes the smallest that fits integers of up to 16 bits, and
            float32 for floating-point values.

    Raises:
        MissingLabel: A value does not fit the type, or the shape is not allowed.
    """
    if values.ndim not in (2, 3) or values.dtype.kind not in "buif" or not values.size:
        raise MissingLabel("not a picture of numbers")
    wide = "float32" if values.dtype.kind == "f" else "uint16"
    target = np.dtype(dtype or ("uint8" if values.dtype in (np.uint8, np.bool_) else wide))
    if target.kind == "u" and not _fits(values, np.iinfo(target)):
        raise MissingLabel(f"values that do not fit {target}")
    picture = values.astype(target)
    return picture[None] if picture.ndim == 2 else picture.transpose(2, 0, 1)


def _fits(values: np.ndarray, limits: Any) -> bool:  # noqa: ANN401
    inside = limits.min <= values.min() and values.max() <= limits.max  # false for NaN
    return bool(inside and (values.dtype.kind != "f" or np.array_equal(values, np.rint(values))))


def _plain_jpeg(data: bytes) -> np.ndarray | None:
    """Return the picture [C,H,W] of a JPEG that `decode` accepts; None for other files."""
    if not data.startswith(_JPEG_START):
        return None
    try:
        picture = decode("source.jpg", data)
    except DataError:
        return None
    return picture if isinstance(picture, np.ndarray) else None


@contextmanager
def _opened(data: bytes) -> Iterator[Image.Image]:
    try:
        with Image.open(io.BytesIO(data), formats=_FORMATS) as image:
            if image.width * image.height > MAX_PIXELS:
                raise MissingLabel("too large")
            yield image
    except PILLOW_ERRORS as error:
        raise MissingLabel("unreadable") from error
