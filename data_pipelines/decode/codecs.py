"""Encoders, and decoders chosen by the suffix of a member, for pictures and records."""

from __future__ import annotations

import io
import json
import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from PIL import Image

from data_pipelines.decode.bounds import MAX_RECORD_DEPTH, check_member_size
from data_pipelines.decode.planes import decode_planes
from data_pipelines.errors import DataError
from dmtg.nesting import is_deeper
from dmtg.pictures import LABEL_PIXELS, MAX_PIXELS, read_values

PICTURES = frozenset({"png", "jpg", "jpeg"})  # suffixes of pictures that any program shows
IMAGES = PICTURES | {"planes"}  # suffixes that decode to a picture
_MAX_DIGITS = 9
_PNG_BIT_DEPTH, _PNG_DEEP = 24, b"\x10"  # byte offset in the IHDR chunk, 16 bits


def encode_png(array: np.ndarray) -> bytes:
    """Return PNG bytes of uint8 [H,W] or [H,W,3] or uint16 [H,W]; lossless.

    Raises:
        ValueError: Another dtype or shape.
    """
    grey = array.ndim == 2 and array.dtype in (np.uint8, np.uint16)
    if not grey and not _is_rgb(array):
        raise ValueError(
            f"array: {array.dtype} {list(array.shape)} is not uint8 [H,W] or [H,W,3] or "
            "uint16 [H,W]"
        )
    return _saved(array, format="PNG")


def encode_jpeg(array: np.ndarray, quality: int = 95) -> bytes:
    """Return JPEG bytes of uint8 [H,W] or [H,W,3], without chroma subsampling (4:4:4).

    JPEG decoders differ by one level in some pixels, so decoded pixels are exact only for one
    decoder.

    Raises:
        ValueError: Another dtype or shape, or a side is longer than a JPEG can be.
    """
    if not _is_rgb(array) and not (array.ndim == 2 and array.dtype == np.uint8):
        raise ValueError(f"array: {array.dtype} {list(array.shape)} is not uint8 [H,W] or [H,W,3]")
    options = {"format": "JPEG", "quality": quality, "subsampling": 0}
    try:
        return _saved(array, optimize=True, **options)
    except OSError:  # noise does not fit the buffer that Pillow reserves for optimized codes
        pass
    try:
        return _saved(array, **options)
    except OSError as error:
        raise ValueError(f"array: {list(array.shape)} cannot be a JPEG: {error}") from error


def encode_json(record: dict[str, Any]) -> bytes:
    """Return compact JSON with sorted keys.

    Raises:
        ValueError: A number is not finite.
    """
    text = json.dumps(record, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return text.encode()


def decode(member: str, data: bytes, max_pixels: int = MAX_PIXELS) -> np.ndarray | dict[str, Any]:
    """Decode a member by its last suffix.

    Args:
        member: Name of the member, such as `depth_zbuffer.png`.
        data: Its bytes.
        max_pixels: Maximum number of pixels of a picture.

    Returns:
        A picture as [C,H,W] in the stored dtype, which may be read-only, or a record.

    Raises:
        DataError: The suffix is not on the list, the bytes are damaged or too many, or the picture
            is too large.
    """
    check_member_size(member, len(data))
    codec = member.rpartition(".")[2]
    decoder = _DECODERS.get(codec)
    if decoder is None:
        raise DataError(f"{member}: suffix {codec!r} is not one of {', '.join(_DECODERS)}")
    return decoder(member, data, max_pixels)


def decode_sample(image: str, members: Mapping[str, bytes]) -> dict[str, Any]:
    """Decode the members of a sample, by name; the size of its labels is bounded by its image.

    Args:
        image: Name of the member that is the input.
        members: Bytes by name.

    Raises:
        DataError: As `decode`, and a label has more than `LABEL_PIXELS` times the image's pixels.
    """
    decoded: dict[str, Any] = {}
    max_pixels = MAX_PIXELS
    for member in sorted(members, key=lambda name: name != image):  # the image first
        decoded[member] = decode(member, members[member], max_pixels)
        if member == image and isinstance(decoded[member], np.ndarray):
            max_pixels = min(MAX_PIXELS, LABEL_PIXELS * decoded[member][0].size)
    return decoded


def _is_rgb(array: np.ndarray) -> bool:
    return array.ndim == 3 and array.shape[2] == 3 and array.dtype == np.uint8


def _saved(array: np.ndarray, **options: Any) -> bytes:  # noqa: ANN401
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, **options)
    return buffer.getvalue()


def _decode_png(member: str, data: bytes, max_pixels: int) -> np.ndarray:
    deep = data[_PNG_BIT_DEPTH : _PNG_BIT_DEPTH + 1] == _PNG_DEEP
    values = read_values(member, data, ("PNG",), ("L", "RGB", "I;16", "I"), max_pixels)
    picture = _channels_first(values)
    return picture.astype(np.uint16) if deep else picture


def _decode_jpeg(member: str, data: bytes, max_pixels: int) -> np.ndarray:
    return _channels_first(read_values(member, data, ("JPEG",), ("L", "RGB"), max_pixels))


def _channels_first(values: np.ndarray) -> np.ndarray:
    """Return [H,W] or [H,W,C] as [C,H,W]."""
    return values[None] if values.ndim == 2 else values.transpose(2, 0, 1)


def _decode_record(member: str, data: bytes, _max_pixels: int) -> dict[str, Any]:
    return decode_json(member, data)


def decode_json(member: str, data: bytes) -> dict[str, Any]:
    """Decode a JSON object of finite numbers.

    Raises:
        DataError: The bytes are not such an object, or it is too large or too deep.
    """
    check_member_size(member, len(data))
    try:
        record = json.loads(data, parse_float=_finite, parse_constant=_finite)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{member}: damaged JSON of {len(data)} bytes: {error}") from error
    if not isinstance(record, dict):
        raise DataError(f"{member}: {type(record).__name__} found, a JSON object is needed")
    # The usual record has few brackets and need not be walked through.
    many = data.count(b"{") + data.count(b"[") > MAX_RECORD_DEPTH
    if many and is_deeper(record, MAX_RECORD_DEPTH):
        raise DataError(
            f"{member}: JSON of more than {MAX_RECORD_DEPTH} objects and arrays inside each other"
        )
    return record


def _decode_cls(member: str, data: bytes, _max_pixels: int) -> dict[str, Any]:
    """Decode a class id in decimal digits, the usual label of classification shards."""
    text = data.strip()
    if not text.isdigit() or len(text) > _MAX_DIGITS:
        raise DataError(
            f"{member}: {data[:20]!r} is not a class id of at most {_MAX_DIGITS} digits"
        )
    return {"cls": int(text)}


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"number {text} is not finite")
    return value


_DECODERS: dict[str, Callable[[str, bytes, int], np.ndarray | dict[str, Any]]] = {
    "png": _decode_png,
    "jpg": _decode_jpeg,
    "jpeg": _decode_jpeg,
    "planes": decode_planes,
    "json": _decode_record,
    "cls": _decode_cls,
}
