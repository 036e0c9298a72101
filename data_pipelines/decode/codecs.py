"""Encoders, and decoders chosen by the suffix of a member, for pictures and records."""

from __future__ import annotations

import io
import json
import math
import struct
import zlib
from collections.abc import Callable
from typing import Any

import numpy as np
from PIL import Image

from data_pipelines.decode.bounds import MAX_RECORD_DEPTH, check_member_size
from data_pipelines.decode.planes import decode_planes
from data_pipelines.errors import DataError

MAX_PIXELS = 64 * 2**20
_MAX_DIGITS = 9
_PNG_BIT_DEPTH, _PNG_COLOUR_TYPE = 24, 25  # byte offsets in the IHDR chunk
_PNG_DEEP, _PNG_COLOURS = b"\x10", (b"\x02", b"\x04", b"\x06")
PILLOW_ERRORS = (
    OSError,
    SyntaxError,
    ValueError,
    EOFError,
    IndexError,
    KeyError,
    struct.error,
    zlib.error,
    Image.DecompressionBombError,
)


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
        ValueError: Another dtype or shape.
    """
    if not _is_rgb(array) and not (array.ndim == 2 and array.dtype == np.uint8):
        raise ValueError(f"array: {array.dtype} {list(array.shape)} is not uint8 [H,W] or [H,W,3]")
    return _saved(array, format="JPEG", quality=quality, subsampling=0, optimize=True)


def encode_json(record: dict[str, Any]) -> bytes:
    """Return compact JSON with sorted keys.

    Raises:
        ValueError: A number is not finite.
    """
    text = json.dumps(record, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return text.encode()


def decode(member: str, data: bytes) -> np.ndarray | dict[str, Any]:
    """Decode a member by its last suffix.

    Args:
        member: Name of the member, such as `depth_zbuffer.png`.
        data: Its bytes.

    Returns:
        A picture as [C,H,W] in the stored dtype, which may be read-only, or a record.

    Raises:
        DataError: The suffix is not on the list, or the bytes are damaged or too many.
    """
    check_member_size(member, len(data))
    codec = member.rpartition(".")[2]
    decoder = _DECODERS.get(codec)
    if decoder is None:
        raise DataError(f"{member}: suffix {codec!r} is not one of {', '.join(_DECODERS)}")
    return decoder(member, data)


def _is_rgb(array: np.ndarray) -> bool:
    return array.ndim == 3 and array.shape[2] == 3 and array.dtype == np.uint8


def _saved(array: np.ndarray, **options: Any) -> bytes:  # noqa: ANN401
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, **options)
    return buffer.getvalue()


def _decode_png(member: str, data: bytes) -> np.ndarray:
    deep = data[_PNG_BIT_DEPTH : _PNG_BIT_DEPTH + 1] == _PNG_DEEP
    if deep and data[_PNG_COLOUR_TYPE : _PNG_COLOUR_TYPE + 1] in _PNG_COLOURS:
        # Pillow would drop the low eight of the sixteen bits without an error.
        raise DataError(
            f"{member}: 16-bit PNG in colour; allowed are 8-bit grey or RGB, 16-bit grey"
        )
    picture = _decode_picture(member, data, "PNG", ("L", "RGB", "I;16", "I"))
    return picture.astype(np.uint16) if deep else picture


def _decode_jpeg(member: str, data: bytes) -> np.ndarray:
    return _decode_picture(member, data, "JPEG", ("L", "RGB"))


def _decode_picture(member: str, data: bytes, kind: str, modes: tuple[str, ...]) -> np.ndarray:
    try:
        with Image.open(io.BytesIO(data), formats=[kind]) as image:
            width, height = image.size
            if width * height > MAX_PIXELS:
                raise DataError(f"{member}: {width}x{height} pixels, at most {MAX_PIXELS} allowed")
            if image.mode not in modes:
                raise DataError(f"{member}: {kind} of mode {image.mode}, allowed are {modes}")
            array = np.asarray(image)  # [H,W] or [H,W,C]
    except DataError:
        raise
    except PILLOW_ERRORS as error:
        raise DataError(f"{member}: damaged {kind} of {len(data)} bytes: {error}") from error
    return array[None] if array.ndim == 2 else array.transpose(2, 0, 1)


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
    if _is_deep(record, data):
        raise DataError(
            f"{member}: JSON of more than {MAX_RECORD_DEPTH} objects and arrays inside each other"
        )
    return record


def _is_deep(record: dict[str, Any], data: bytes) -> bool:
    """Return whether a record, decoded from `data`, is deeper than `MAX_RECORD_DEPTH`."""
    if data.count(b"{") + data.count(b"[") <= MAX_RECORD_DEPTH:
        return False  # the usual record, which need not be walked through
    level: list[Any] = [record]
    for _ in range(MAX_RECORD_DEPTH):
        values = [value.values() if isinstance(value, dict) else value for value in level]
        level = [v for part in values for v in part if isinstance(v, dict | list)]
    return bool(level)


def _decode_cls(member: str, data: bytes) -> dict[str, Any]:
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


_DECODERS: dict[str, Callable[[str, bytes], np.ndarray | dict[str, Any]]] = {
    "png": _decode_png,
    "jpg": _decode_jpeg,
    "jpeg": _decode_jpeg,
    "planes": decode_planes,
    "json": decode_json,
    "cls": _decode_cls,
}
