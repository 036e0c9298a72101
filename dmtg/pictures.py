"""The one way to open a picture: formats on a list, a bound of its size, upright."""
# Shapes: C channels, H, W.

from __future__ import annotations

import io
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from PIL import ExifTags, Image, ImageFile, UnidentifiedImageError

from dmtg.errors import DataError

# Pixels of a member of a shard, compared with the header before anything is decoded. Pillow keeps
# 4 bytes of an RGB pixel and the array has 3, so the largest picture takes 176 MB, besides the
# coefficients of a progressive JPEG and the canvas of a WebP.
MAX_PIXELS = 24 * 2**20
# Pixels of a photo that is converted or predicted, one at a time: phones take 50 megapixels.
MAX_PHOTO_PIXELS = 52 * 2**20
# A label has at most this many pixels for each pixel of its sample's image: 8 times its sides.
LABEL_PIXELS = 64
# Formats of photos and label pictures of other datasets; no format that starts a program, as EPS.
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF", "PPM")
_SIXTEEN_BITS = ("I;16", "I;16L", "I;16B")
_PHOTO_MODES = (
    "1", "L", "LA", "La", "P", "PA", "RGB", "RGBA", "RGBa", "RGBX", "CMYK", "YCbCr", *_SIXTEEN_BITS
)  # fmt: skip
# Of a picture that becomes an array at once, and of the parts of a larger one: whole copies of it
# would take more memory.
_WHOLE_PIXELS, _STRIP_PIXELS = 2**22, 2**20
_TURNS: dict[object, Callable[[np.ndarray], np.ndarray]] = {
    2: lambda rows: rows[:, ::-1],
    3: lambda rows: rows[::-1, ::-1],
    4: lambda rows: rows[::-1],
    5: lambda rows: rows.swapaxes(0, 1),
    6: lambda rows: rows.swapaxes(0, 1)[:, ::-1],
    7: lambda rows: rows[::-1, ::-1].swapaxes(0, 1),
    8: lambda rows: rows.swapaxes(0, 1)[::-1],
}  # by the value of the EXIF tag Orientation; 1 and other values change nothing

# The bound above is lower than Pillow's, which also raises an error only at twice its value.
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)


class PictureError(DataError):
    """A picture cannot be used; the message names its file.

    Args:
        message: The message.
        reason: The fault in words that are equal for all pictures with it, to count by.
    """

    def __init__(self, message: str, reason: str = "unreadable") -> None:
        super().__init__(message)
        self.reason = reason


def check_size(name: str, width: int, height: int, max_pixels: int) -> None:
    """Compare the size of a picture that is not yet decoded with a maximum number of pixels.

    Raises:
        PictureError: It is larger.
    """
    if width * height > max_pixels:
        fixed = max_pixels in (MAX_PIXELS, MAX_PHOTO_PIXELS)
        limit = "" if fixed else f", {LABEL_PIXELS} times those of the image"
        raise PictureError(
            f"{name}: {width}x{height} pixels, at most {max_pixels} allowed{limit}", "too large"
        )


def check_photo(path: Path) -> None:
    """Read the header of an image file.

    Raises:
        PictureError: `read_photo` would refuse the file for what its header says.
    """
    with _opened(str(path), path, FORMATS, MAX_PHOTO_PIXELS) as image:
        _check_mode(str(path), image, _PHOTO_MODES)


def read_photo(name: str, source: Path | bytes) -> np.ndarray:
    """Return a photo as uint8 [H,W,3], upright.

    Greys and palettes become RGB. Transparent pixels are blended with white. 16 bits become 8 by
    rounding: 65535 becomes 255.

    Args:
        name: Name of the file, for messages.
        source: The file, or its content.

    Raises:
        PictureError: It is damaged, larger than `MAX_PHOTO_PIXELS`, of a format that is not in
            `FORMATS`, or its values are floating-point or 32-bit numbers, whose range is unknown.
    """
    with _opened(name, source, FORMATS, MAX_PHOTO_PIXELS) as image:
        return to_photo(name, image)


def to_photo(name: str, image: Image.Image) -> np.ndarray:
    """Return a picture that is open as uint8 [H,W,3], upright, as `read_photo` does.

    Args:
        name: What it is, for messages.
        image: The picture.

    Raises:
        PictureError: It is larger than `MAX_PHOTO_PIXELS`, or of a mode whose range is unknown.
    """
    check_size(name, image.width, image.height, MAX_PHOTO_PIXELS)
    _check_mode(name, image, _PHOTO_MODES)
    return _upright(image, _rows(image, _as_rgb))


def read_values(
    name: str,
    data: bytes,
    formats: tuple[str, ...],
    modes: Sequence[str],
    max_pixels: int = MAX_PIXELS,
) -> np.ndarray:
    """Return the stored values [H,W] or [H,W,C] of a picture, upright; of a palette its indices.

    Values are neither scaled nor converted. A picture whose EXIF tag says that it is to be turned
    is turned: this is how viewers and annotation tools show it, so labels beside it, which have no
    such tag, are of the upright picture, and an exported model gets upright photos from
    `read_photo`.

    Args:
        name: Name of the file or member, for messages.
        data: Its content.
        formats: Allowed formats, as Pillow names them.
        modes: Allowed modes of Pillow.
        max_pixels: Maximum number of pixels.

    Raises:
        PictureError: It is damaged, too large, of another format or mode, or it has 16 bits of
            each colour, of which Pillow would drop the low eight without an error.
    """
    with _opened(name, data, formats, max_pixels) as image:
        if not image.mode.startswith("I") and any(";16" in str(tile[3]) for tile in image.tile):
            raise PictureError(
                f"{name}: 16-bit {image.format} in colour; allowed are 8-bit grey or RGB, "
                "16-bit grey",
                "16-bit colours",
            )
        _check_mode(name, image, modes)
        return _upright(image, _rows(image, lambda part: part))


def is_upright(data: bytes) -> bool:
    """Return whether the content of a readable picture is stored as it is to be shown."""
    with _opened("picture", data, FORMATS, MAX_PHOTO_PIXELS) as image:
        return _orientation(image) not in _TURNS


@contextmanager
def _opened(
    name: str, source: Path | bytes, formats: tuple[str, ...], max_pixels: int
) -> Iterator[ImageFile.ImageFile]:
    """Open a picture and check its size; every error in the block is one of the picture."""
    try:
        file = io.BytesIO(source) if isinstance(source, bytes) else source
        with Image.open(file, formats=formats) as image:
            check_size(name, image.width, image.height, max_pixels)
            yield image
    except (DataError, MemoryError):
        raise
    except Exception as error:  # Pillow's formats raise errors of many types for damaged files
        fault = "unknown format" if isinstance(error, UnidentifiedImageError) else error
        kinds = ", ".join(formats)
        if isinstance(source, Path):
            raise PictureError(f"{name}: cannot be read as {kinds}: {fault}") from error
        raise PictureError(f"{name}: damaged {kinds} of {len(source)} bytes: {fault}") from error


def _check_mode(name: str, image: Image.Image, modes: Sequence[str]) -> None:
    if image.mode not in modes:
        kind = image.format or "picture"
        raise PictureError(
            f"{name}: {kind} of mode {image.mode}, allowed are {', '.join(modes)}",
            f"picture of mode {image.mode}",
        )


def _rows(
    image: Image.Image, convert: Callable[[Image.Image], Image.Image | np.ndarray]
) -> np.ndarray:
    """Return the decoded picture as an array [H,W] or [H,W,C] of converted parts."""
    image.load()
    (width, height), step = image.size, max(1, _STRIP_PIXELS // image.width)
    if width * height <= _WHOLE_PIXELS:
        return np.asarray(convert(image))
    result = None
    for top in range(0, height, step):
        bottom = min(top + step, height)
        part = np.asarray(convert(image.crop((0, top, width, bottom))))
        if result is None:
            result = np.empty((height, *part.shape[1:]), part.dtype)
        result[top:bottom] = part
    assert result is not None, "a picture has rows"
    return result


def _as_rgb(part: Image.Image) -> Image.Image | np.ndarray:
    if part.mode in _SIXTEEN_BITS:
        grey = ((np.asarray(part).astype(np.uint32) + 128) // 257).astype(np.uint8)
        return np.repeat(grey[..., None], 3, axis=2)
    if part.has_transparency_data:
        white = Image.new("RGBA", part.size, "white")
        part = Image.alpha_composite(white, part.convert("RGBA"))
    return part if part.mode == "RGB" else part.convert("RGB")


def _upright(image: Image.Image, rows: np.ndarray) -> np.ndarray:
    turn = _TURNS.get(_orientation(image))
    return rows if turn is None else np.ascontiguousarray(turn(rows))


def _orientation(image: Image.Image) -> object:
    """Return the EXIF tag Orientation; 1 without it. Pillow turns a TIFF itself when it loads."""
    if image.format == "TIFF":
        return 1
    try:
        return image.getexif().get(ExifTags.Base.Orientation, 1)
    except Exception:  # a damaged tag of an intact picture, as for viewers
        return 1
