"""From a photo of any size and mode to the input of a network, and back to the photo's size.

Legend: B batch, C channels, H, W size of a photo, h, w size of the network's images.
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from dmtg.pictures import PictureError, read_photo, to_photo

Photo = NDArray[np.uint8]  # [H,W,3]
PhotoLike = str | os.PathLike[str] | Image.Image | NDArray[np.uint8]


def load_photo(photo: PhotoLike) -> Photo:
    """Return a photo as uint8 [H,W,3], upright.

    Args:
        photo: A file, a picture of Pillow, or uint8 [H,W,3] or [H,W].

    Raises:
        PictureError: It cannot be read, see `dmtg.pictures.read_photo`, or is of another type.
    """
    if isinstance(photo, (str, os.PathLike)):
        return read_photo(os.fspath(photo), Path(photo))
    if isinstance(photo, Image.Image):
        return to_photo("photo", photo)
    if not isinstance(photo, np.ndarray):
        raise PictureError(
            f"photo is of type {type(photo).__name__}, must be a path, a picture of Pillow or an "
            "array"
        )
    if photo.dtype != np.uint8 or not (photo.ndim == 2 or photo.shape[2:] == (3,)):
        raise PictureError(
            f"photo is an array of {photo.dtype} {list(photo.shape)}, must be uint8 [H,W,3] or "
            "[H,W]"
        )
    return to_photo("photo", Image.fromarray(photo))


def resized(photo: Photo, size: tuple[int, int]) -> Photo:
    """Return a photo in another size, as training resizes it: the whole picture, antialiased.

    Args:
        photo: [H,W,3].
        size: Height h and width w.
    """
    if photo.shape[:2] == size:
        return photo
    picture = Image.fromarray(np.ascontiguousarray(photo))
    return np.asarray(picture.resize(size[::-1], Image.Resampling.BILINEAR))


def to_images(photos: list[Photo]) -> Tensor:
    """Return photos of one size [h,w,3] as images uint8 [B,3,h,w]."""
    return torch.from_numpy(np.stack(photos).transpose(0, 3, 1, 2).copy())


def resized_back(prediction: Tensor, size: tuple[int, int]) -> NDArray[np.generic]:
    """Return a prediction for every pixel in the size of its photo, on the CPU.

    Floats are interpolated between pixels. Class ids, which cannot be mixed, are those of the
    nearest pixel.

    Args:
        prediction: Floats [C,h,w] or ids [h,w].
        size: H and W.
    """
    values = prediction.detach().float()
    if values.shape[-2:] != size:
        if prediction.is_floating_point():
            values = F.interpolate(values[None], size, mode="bilinear", antialias=True)[0]
        else:
            values = F.interpolate(values[None, None], size, mode="nearest-exact")[0, 0]
    values = values if prediction.is_floating_point() else values.to(prediction.dtype)
    return values.cpu().numpy()
