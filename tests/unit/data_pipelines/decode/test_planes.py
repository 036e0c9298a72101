"""Planes: exact for every array, read by an independent decoder, damage always noticed."""

import struct
import zlib

import numpy as np
import pyarrow
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from data_pipelines.decode.planes import MAX_BYTES, decode_planes, encode_planes
from data_pipelines.errors import DataError
from dmtg.pictures import MAX_PIXELS

RNG = np.random.default_rng(3)
ROWS, COLUMNS = np.mgrid[0:48, 0:64]
NOISE = RNG.integers(0, 2**16, (48, 64)).astype(np.uint16)
PLANE = (900 + 7 * ROWS + 13 * COLUMNS).astype(np.uint16)  # a tilted plane
WALKS = (RNG.integers(0, 2**16, 64) + RNG.integers(0, 8, (48, 64)).cumsum(axis=0)).astype(np.uint16)
HEADER = struct.Struct("<4sBBBBIII")
FILTER = 6  # byte of the header


def planar(array: np.ndarray) -> np.ndarray:
    return array[None] if array.ndim == 2 else array.transpose(2, 0, 1)


def by_hand(data: bytes) -> np.ndarray:
    """Decodes a file pixel by pixel from the description of the format alone."""
    _, _, dtype, filtered, channels, height, width, _ = HEADER.unpack_from(data)
    size = {1: 1, 2: 2, 3: 4}[dtype]
    raw = pyarrow.decompress(data[HEADER.size :], channels * height * width * size, "zstd")
    planes = np.frombuffer(raw, np.uint8).reshape(size, channels, height, width)
    out = np.zeros((channels, height, width), object)
    for c, y, x in np.ndindex(channels, height, width):
        value = sum(int(planes[byte, c, y, x]) << 8 * byte for byte in range(size))
        if filtered and size > 1:
            value = value // 2 if value % 2 == 0 else -(value + 1) // 2
        if filtered:
            value += out[c, y - 1, x] if y else 0
        if filtered == 2 and x:
            value += out[c, y, x - 1] - (out[c, y - 1, x - 1] if y else 0)
        out[c, y, x] = value % 256**size
    return out.astype(f"<u{size}").view({1: "u1", 2: "<u2", 3: "<f4"}[dtype])


def resealed(data: bytes, place: int, value: bytes) -> bytes:
    """The file with other bytes at a place of its header and a checksum that fits."""
    head = bytearray(data[: HEADER.size - 4])
    head[place : place + len(value)] = value
    payload = data[HEADER.size :]
    return bytes(head) + struct.pack("<I", zlib.crc32(bytes(head) + payload)) + payload


ANY_PICTURE = st.one_of(
    *(
        arrays(dtype, array_shapes(min_dims=2, max_dims=3, min_side=1, max_side=9))
        for dtype in (np.uint8, np.uint16, ">u2")
    ),
    arrays(
        np.float32,
        array_shapes(min_dims=2, max_dims=3, min_side=1, max_side=9),
        elements=st.floats(width=32, allow_nan=False, allow_infinity=False),
    ),
)


@settings(max_examples=200, deadline=None)
@given(
    array=ANY_PICTURE, way=st.sampled_from(["as it is", "mirrored", "transposed", "every other"])
)
def test_every_picture_comes_back_bit_for_bit(array, way):
    if way == "mirrored":
        array = array[::-1, ::-1]
    elif way == "transposed":
        array = array.swapaxes(0, 1)
    elif way == "every other":
        array = array[::2, ::2]
    decoded = decode_planes("a.planes", encode_planes(array))
    assert decoded.dtype == array.dtype.newbyteorder("=")
    assert decoded.tobytes() == np.ascontiguousarray(planar(array), decoded.dtype).tobytes()


@pytest.mark.parametrize(
    ("array", "filtered"),
    [
        (NOISE, 0),
        (WALKS, 1),
        (PLANE, 2),
        (RNG.integers(0, 256, (12, 9, 3)).astype(np.uint8), 0),
        (np.stack([PLANE % 251, WALKS % 251, PLANE % 3], axis=2).astype(np.uint8), 1),
        (PLANE.astype(np.float32) / 7, None),
    ],
)
def test_the_filter_fits_the_picture_and_another_decoder_agrees(array, filtered):
    data = encode_planes(array)
    assert data.startswith(b"DMPL\x01")
    if filtered is not None:
        assert data[FILTER] == filtered
    np.testing.assert_array_equal(by_hand(data), planar(array))
    np.testing.assert_array_equal(decode_planes("a", data), planar(array))


def test_smooth_pictures_shrink():
    assert len(encode_planes(PLANE)) < PLANE.nbytes / 20
    assert len(encode_planes(NOISE)) < NOISE.nbytes + 200


def test_large_differences_wrap_around():
    extremes = np.array([[0, 65535], [65535, 0]] * 40, np.uint16)
    for start in (0, 1, 2**15):
        jumps = np.cumsum(extremes + np.uint16(start), axis=1, dtype=np.uint16)
        np.testing.assert_array_equal(decode_planes("a", encode_planes(jumps))[0], jumps)


@pytest.mark.parametrize(
    "array",
    [
        np.zeros((4, 4), np.int16),
        np.zeros((4, 4), np.float64),
        np.zeros(4, np.uint8),
        np.zeros((2, 2, 2, 2), np.uint8),
        np.zeros((0, 4), np.uint8),
        np.zeros((1, 1, 256), np.uint8),
        np.broadcast_to(np.uint8(0), (2**13, 2**13, 2)),
    ],
)
def test_what_cannot_be_stored_is_refused(array):
    with pytest.raises(ValueError, match=r"array: .* is not uint8, uint16 or float32 \[H,W\] or"):
        encode_planes(array)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_numbers_must_be_finite(value):
    with pytest.raises(ValueError, match="array: a value is not finite"):
        encode_planes(np.array([[1.0, value]], np.float32))
    planes = np.array([[1.0, value]], "<f4").view(np.uint8).reshape(2, 4).T.tobytes()
    head = struct.pack("<4sBBBBII", b"DMPL", 1, 3, 0, 1, 1, 2)
    payload = pyarrow.compress(planes, "zstd", asbytes=True)
    data = head + struct.pack("<I", zlib.crc32(head + payload)) + payload
    with pytest.raises(DataError, match=r"a\.planes: a value is not finite"):
        decode_planes("a.planes", data)


@settings(max_examples=300, deadline=None)
@given(data=st.data())
def test_one_wrong_bit_is_detected(data):
    good = encode_planes(PLANE[:16, :16])
    place = data.draw(st.integers(0, 8 * len(good) - 1))
    bad = bytearray(good)
    bad[place // 8] ^= 1 << place % 8
    with pytest.raises(DataError, match=r"^a\.planes: (damaged planes|planes of version)"):
        decode_planes("a.planes", bytes(bad))


def test_truncation_at_every_byte_is_detected():
    good = encode_planes(PLANE[:8, :8])
    for length in range(len(good)):
        with pytest.raises(DataError, match=r"^a: damaged planes"):
            decode_planes("a", good[:length])
    with pytest.raises(DataError, match="checksum"):
        decode_planes("a", good + b"\0")


def test_other_formats_and_versions_are_named():
    good = encode_planes(PLANE)
    with pytest.raises(DataError, match=r"damaged planes of 8 bytes: no b'DMPL' header"):
        decode_planes("a", b"\x89PNG\r\n\x1a\n")
    with pytest.raises(DataError, match="planes of version 2, allowed is 1"):
        decode_planes("a", resealed(good, 4, b"\x02"))


@pytest.mark.parametrize(
    ("place", "value"),
    [
        (5, b"\x09"),
        (FILTER, b"\x03"),
        (7, b"\x00"),
        (7, b"\xff\x00\x10\x00\x00\x00\x10\x00\x00"),
    ],
)
def test_a_header_that_asks_for_too_much_is_refused_before_memory_is_taken(place, value):
    with pytest.raises(DataError, match=rf"allowed are .* at most {MAX_BYTES} bytes"):
        decode_planes("a", resealed(encode_planes(PLANE), place, value))


@pytest.mark.parametrize(
    ("place", "value"),
    [(8, struct.pack("<I", 2**31)), (8, struct.pack("<II", 2**13, 2**13)), (12, b"\0\0\0\1")],
)
def test_a_size_that_is_too_large_is_refused_before_memory_is_taken(place, value):
    data = resealed(encode_planes(PLANE), place, value)
    with pytest.raises(DataError, match=rf"^a: \d+x\d+ pixels, at most {MAX_PIXELS} allowed$"):
        decode_planes("a", data)
    with pytest.raises(DataError, match="64x48 pixels, at most 3071 allowed, 64 times those of"):
        decode_planes("a", encode_planes(PLANE), 3071)
    assert decode_planes("a", encode_planes(PLANE), 3072).shape == (1, 48, 64)


def test_a_payload_too_short_for_the_size_is_refused_before_memory_is_taken():
    data = encode_planes(np.zeros((64, 64), np.uint8))
    large = resealed(data, 8, struct.pack("<II", 4096, 4096))
    with pytest.raises(
        DataError, match=r"^a: damaged planes: 16777216 bytes cannot be in \d+ comp"
    ):
        decode_planes("a", large)
    assert not decode_planes("a", encode_planes(np.zeros((4096, 4096, 3), np.uint8))).any()


@pytest.mark.parametrize("height", [47, 49, 4800])
def test_a_payload_of_another_size_than_the_shape_is_refused(height):
    with pytest.raises(DataError, match=r"^a: damaged planes: "):
        decode_planes("a", resealed(encode_planes(PLANE), 8, struct.pack("<I", height)))
