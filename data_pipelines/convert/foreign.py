"""Pictures of other datasets in common formats, converted to images or label values."""
# Shapes: C channels, H, W.

from __future__ import annotations

from typing import Any

import numpy as np

from data_pipelines.convert.pictures import shrunk, stored_image
from data_pipelines.convert.tally import MissingLabel
from data_pipelines.decode.codecs import decode
from data_pipelines.errors import DataError
from data_pipelines.shards.encoded import Storage
from dmtg.pictures import (
    FORMATS,
    MAX_PHOTO_PIXELS,
    PictureError,
    is_upright,
    read_photo,
    read_values,
)

_JPEG_START = b"\xff\xd8"
_GREY_MODES = ("L", "P", "RGB", "F", "I", "I;16", "I;16B", "I;16L")  # stored values, unchanged


def convert_image(
    storage: Storage, data: bytes, image_size: int | None
) -> tuple[bytes, tuple[int, int]]:
    """Convert a source image to the bytes of a member.

    An upright JPEG that keeps its size is copied byte for byte, without loss. A picture that is to
    be turned is stored turned, so that its labels fit it in every reader.

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
        if shrunk((height, width), image_size) == (height, width) and is_upright(data):
            return data, (height, width)
    if picture is None:
        try:
            picture = read_photo("image", data).transpose(2, 0, 1)
        except PictureError as error:
            raise MissingLabel(error.reason) from error
    return stored_image(storage, picture, image_size), picture.shape[1:]


def label_picture(data: bytes, dtype: str | None = None) -> np.ndarray:
    """Return the values of a label picture, see `label_values`; of a palette image, its indices.

    Raises:
        MissingLabel: The picture is damaged, too large or of another format, or a value does
            not fit the type.
    """
    try:
        values = read_values("label", data, FORMATS, _GREY_MODES, MAX_PHOTO_PIXELS)
    except PictureError as error:
        raise MissingLabel(error.reason) from error
    return label_values(values, dtype)


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
