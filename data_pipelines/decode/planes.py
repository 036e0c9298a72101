"""A lossless format for label pictures: filtered byte planes compressed with zstd."""
# Shapes: C channels, H, W.

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable
from typing import Any

import numpy as np
from pyarrow import ArrowException, Codec

from data_pipelines.errors import DataError
from dmtg.pictures import MAX_PIXELS, check_size

# Bytes of a decoded picture: three uint8 or one uint16 channel of 4096 x 4096, one float32 channel
# of 4000 x 3000. Decoding takes three times as much.
MAX_BYTES = 48 * 2**20
# A block of zstd has at least 4 bytes and at most 128 KiB of content.
_MAX_RATIO = 2**15
_MAGIC, _VERSION = b"DMPL", 1
# magic, version, dtype, filter, channels, height, width; then the CRC-32 of these and the payload
_HEADER = struct.Struct("<4sBBBBII")
_CHECKSUM = struct.Struct("<I")
_PREFIX = _HEADER.size + _CHECKSUM.size
_DTYPES: dict[int, np.dtype[Any]] = {1: np.dtype(np.uint8), 2: np.dtype("<u2"), 3: np.dtype("<f4")}
_QUICK, _THOROUGH = Codec("zstd", compression_level=3), Codec("zstd", compression_level=15)


def encode_planes(array: np.ndarray) -> bytes:
    """Return the bytes of uint8, uint16 or finite float32 [H,W] or [H,W,C]; lossless.

    The filter that gives the smallest result is used: none, the difference from the pixel above,
    or that difference minus the same difference of the left neighbour. Values of several bytes
    are stored as one plane per byte, because the high bytes compress better separately.

    Raises:
        ValueError: Another dtype or shape, too many values, or a value that is not finite.
    """
    dtype = array.dtype.newbyteorder("<") if array.dtype.itemsize > 1 else array.dtype
    codes = [code for code, allowed in _DTYPES.items() if allowed == dtype]
    shape = (*array.shape, 1, 1, 1)[:3]
    fits = 0 < array.nbytes <= MAX_BYTES and shape[0] * shape[1] <= MAX_PIXELS
    if not codes or array.ndim not in (2, 3) or not fits or shape[2] > 255:
        raise ValueError(
            f"array: {array.dtype} {list(array.shape)} is not uint8, uint16 or float32 [H,W] or "
            f"[H,W,C] with 1 to 255 channels, at most {MAX_PIXELS} pixels and {MAX_BYTES} bytes"
        )
    if dtype.kind == "f" and not np.isfinite(array).all():
        raise ValueError("array: a value is not finite")
    height, width, channels = shape
    picture = np.ascontiguousarray(array.reshape(shape).transpose(2, 0, 1), dtype)  # [C,H,W]
    levels = picture.view(f"<u{dtype.itemsize}")
    number, planes = min(
        ((number, _split(apply(levels))) for number, (apply, _) in _FILTERS.items()),
        key=lambda option: len(_QUICK.compress(option[1], asbytes=True)),
    )
    header = _HEADER.pack(_MAGIC, _VERSION, codes[0], number, channels, height, width)
    payload = _THOROUGH.compress(planes, asbytes=True)
    return header + _CHECKSUM.pack(zlib.crc32(payload, zlib.crc32(header))) + payload


def decode_planes(member: str, data: bytes, max_pixels: int = MAX_PIXELS) -> np.ndarray:
    """Return the picture [C,H,W] that `encode_planes` stored.

    Args:
        member: Name of the member, for messages.
        data: Its bytes.
        max_pixels: Maximum number of pixels.

    Raises:
        DataError: The bytes are damaged, of another version or too large when decoded.
    """
    if len(data) < _PREFIX or not data.startswith(_MAGIC):
        raise DataError(f"{member}: damaged planes of {len(data)} bytes: no {_MAGIC!r} header")
    _, version, code, number, *shape = _HEADER.unpack_from(data)
    if version != _VERSION:
        raise DataError(f"{member}: planes of version {version}, allowed is {_VERSION}")
    payload = memoryview(data)[_PREFIX:]
    (recorded,) = _CHECKSUM.unpack_from(data, _HEADER.size)
    checksum = zlib.crc32(payload, zlib.crc32(data[: _HEADER.size]))
    if checksum != recorded:
        raise DataError(f"{member}: damaged planes: checksum {checksum}, recorded {recorded}")
    check_size(member, shape[2], shape[1], max_pixels)
    dtype = _DTYPES.get(code, np.dtype(np.uint8))
    num_bytes = shape[0] * shape[1] * shape[2] * dtype.itemsize
    if code not in _DTYPES or number not in _FILTERS or not 0 < num_bytes <= MAX_BYTES:
        raise DataError(
            f"{member}: planes of dtype {code}, filter {number}, shape {shape}; allowed are "
            f"dtypes {list(_DTYPES)}, filters {list(_FILTERS)}, at most {MAX_BYTES} bytes"
        )
    if num_bytes > len(payload) * _MAX_RATIO:
        raise DataError(
            f"{member}: damaged planes: {num_bytes} bytes cannot be in {len(payload)} compressed "
            "ones"
        )
    try:
        planes = _QUICK.decompress(payload, num_bytes, asbytes=True)
    except (ArrowException, OSError) as error:
        raise DataError(f"{member}: damaged planes: {error}") from error
    levels = _joined(np.frombuffer(planes, np.uint8), shape, dtype.itemsize)
    del planes  # as large as the picture
    picture = _FILTERS[number][1](levels).view(dtype)
    if dtype.kind == "f" and not np.isfinite(picture).all():
        raise DataError(f"{member}: a value is not finite")
    return picture


def _split(levels: np.ndarray) -> bytes:
    """Return unsigned [C,H,W] as bytes, all lowest bytes first."""
    octets = np.ascontiguousarray(levels).view(np.uint8).reshape(-1, levels.dtype.itemsize)
    return octets.T.tobytes()


def _joined(octets: np.ndarray, shape: list[int], itemsize: int) -> np.ndarray:
    if itemsize == 1:
        return octets.reshape(shape)
    planes = octets.reshape(itemsize, *shape)
    levels = planes[-1].astype(f"<u{itemsize}")
    for plane in planes[-2::-1]:
        levels <<= 8
        levels |= plane
    return levels


def _differences(levels: np.ndarray, axis: int) -> np.ndarray:
    return np.diff(levels, axis=axis, prepend=levels.dtype.type(0))  # modulo the dtype's range


def _sums(differences: np.ndarray, axis: int) -> np.ndarray:
    """Return running sums modulo the range of the dtype; several bytes per value may be reused."""
    if axis == 2 and differences.dtype.itemsize > 1:
        return np.add.accumulate(differences, axis=axis, dtype=differences.dtype, out=differences)
    # Adding shifted copies in doubling steps is vectorised and several times faster than a scan.
    sums, step = differences.swapaxes(0, axis), 1
    del differences  # frees its memory after the first step
    while step < len(sums):
        doubled = sums.copy(order="K")
        doubled[step:] += sums[:-step]
        sums, step = doubled, 2 * step
    return sums.swapaxes(0, axis)


def _folded(differences: np.ndarray) -> np.ndarray:
    """Map small differences of either sign to small unsigned numbers (zigzag coding)."""
    if differences.dtype.itemsize == 1:
        return differences
    signed = differences.view(f"<i{differences.dtype.itemsize}")
    return ((signed << 1) ^ (signed >> 8 * signed.itemsize - 1)).view(differences.dtype)


def _unfolded(folded: np.ndarray) -> np.ndarray:
    """Undo `_folded`, in place."""
    if folded.dtype.itemsize == 1:
        return folded
    signs = folded & 1
    np.negative(signs, out=signs)
    folded >>= 1
    folded ^= signs
    return folded


def _unchanged(levels: np.ndarray) -> np.ndarray:
    return levels


def _from_above(levels: np.ndarray) -> np.ndarray:
    return _folded(_differences(levels, 1))


def _to_above(filtered: np.ndarray) -> np.ndarray:
    return _sums(_unfolded(filtered), 1)


def _from_both(levels: np.ndarray) -> np.ndarray:
    return _folded(_differences(_differences(levels, 1), 2))


def _to_both(filtered: np.ndarray) -> np.ndarray:
    return _sums(_sums(_unfolded(filtered), 2), 1)


_Filter = Callable[[np.ndarray], np.ndarray]
_FILTERS: dict[int, tuple[_Filter, _Filter]] = {
    0: (_unchanged, _unchanged),
    1: (_from_above, _to_above),
    2: (_from_both, _to_both),
}
