"""Resizing and encoding of source pictures; label values are never mixed."""
# Shapes: C channels, H, W.

from __future__ import annotations

import numpy as np

from data_pipelines.convert.tally import MissingLabel
from data_pipelines.shards.encoded import Storage
from data_pipelines.transforms import Geometry, Params
from dmtg.pictures import MAX_PIXELS


def stored_image(storage: Storage, picture: np.ndarray, image_size: int | None) -> bytes:
    """Return an image [C,H,W], resized with antialiasing, as bytes of a member.

    Raises:
        MissingLabel: It cannot be stored.
    """
    target = _stored_size(picture.shape[1:], image_size)
    resized = Geometry(target).apply(picture, _whole(picture), "bilinear")
    try:
        return storage.encode_image(_as_rows(resized))
    except ValueError as error:
        raise MissingLabel("picture that cannot be stored") from error


def stored_label(
    storage: Storage, picture: np.ndarray, image_size: int | None, image_shape: tuple[int, ...]
) -> bytes:
    """Return a dense label [C,H,W], resized to the nearest values, as bytes of a member.

    Args:
        storage: The encoding of labels.
        picture: The label.
        image_size: Pixels of the shorter side; None keeps it.
        image_shape: Height and width of the source image.

    Raises:
        MissingLabel: It has another aspect ratio than the image, or cannot be stored.
    """
    height, width = picture.shape[1:]
    if abs(height * image_shape[1] - width * image_shape[0]) > max(image_shape):
        raise MissingLabel("another shape than the image")
    target = _stored_size((height, width), image_size)
    resized = Geometry(target).apply(picture, _whole(picture), "nearest")
    try:
        return storage.encode_label(_as_rows(resized))
    except ValueError as error:
        raise MissingLabel("values that cannot be stored") from error


def shrunk(shape: tuple[int, ...], image_size: int | None) -> tuple[int, int]:
    """Return height and width with a shorter side of at most `image_size` pixels."""
    height, width = shape
    short = min(height, width)
    if image_size is None or short <= image_size:
        return height, width
    return round(height * image_size / short), round(width * image_size / short)


def _stored_size(shape: tuple[int, ...], image_size: int | None) -> tuple[int, int]:
    """Return height and width of a stored picture, see `shrunk`."""
    height, width = shrunk(shape, image_size)
    if height * width > MAX_PIXELS:
        raise MissingLabel("too large to be stored without --size")
    return height, width


def _whole(picture: np.ndarray) -> Params:
    height, width = picture.shape[1:]
    return Params(height, width, 0, 0, height, width, mirror=False)


def _as_rows(picture: np.ndarray) -> np.ndarray:
    """Return [C,H,W] as [H,W] or [H,W,C]."""
    return picture[0] if len(picture) == 1 else picture.transpose(1, 2, 0)
