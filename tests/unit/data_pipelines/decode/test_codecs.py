"""Encodings: exact round trips, and damaged or foreign bytes refused."""

import io
import struct
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from data_pipelines.decode.codecs import decode, encode_jpeg, encode_json, encode_png
from data_pipelines.decode.planes import encode_planes
from data_pipelines.errors import DataError
from dmtg.pictures import MAX_PIXELS

RNG = np.random.default_rng(0)
RGB = RNG.integers(0, 256, (20, 30, 3)).astype(np.uint8)
GREY16 = RNG.integers(0, 2**16, (20, 30)).astype(np.uint16)


def png_chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def raw_png(width: int, height: int, depth: int, colour: int, rows: bytes) -> bytes:
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + png_chunk(b"IHDR", header)
        + png_chunk(b"IDAT", zlib.compress(rows))
        + png_chunk(b"IEND", b"")
    )


def test_png_rgb_round_trip():
    decoded = decode("a.rgb.png", encode_png(RGB))
    assert decoded.dtype == np.uint8
    np.testing.assert_array_equal(decoded, RGB.transpose(2, 0, 1))


def test_png_grey_round_trip():
    decoded = decode("a.png", encode_png(RGB[..., 0]))
    np.testing.assert_array_equal(decoded, RGB[None, ..., 0])


def test_sixteen_bit_png_is_exact():
    every = np.arange(2**16, dtype=np.uint16).reshape(256, 256)
    decoded = decode("a.png", encode_png(every))
    assert decoded.dtype == np.uint16
    np.testing.assert_array_equal(decoded[0], every)


def test_sixteen_bit_png_against_hand_made_bytes():
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in GREY16)
    decoded = decode("a.png", raw_png(30, 20, 16, 0, rows))
    np.testing.assert_array_equal(decoded[0], GREY16)


def test_jpeg_is_close_and_keeps_colour_resolution():
    stripes = np.zeros((16, 16, 3), np.uint8)
    stripes[:, ::2, 0] = 255
    stripes[:, 1::2, 2] = 255
    for member in ("a.jpg", "a.jpeg"):
        decoded = decode(member, encode_jpeg(stripes))
        assert decoded.shape == (3, 16, 16)
        difference = np.abs(decoded.astype(int) - stripes.transpose(2, 0, 1))
        assert difference.mean() < 8  # with halved colour resolution it is above 60


def test_json_round_trip_is_canonical():
    assert encode_json({"b": 1, "a": 0.5}) == b'{"a":0.5,"b":1}'
    assert decode("x.json", b'{"a": 0.5, "b": [1]}') == {"a": 0.5, "b": [1]}


@pytest.mark.parametrize("text", [b'{"a": NaN}', b'{"a": -Infinity}', b'{"a": 1e999}'])
def test_json_numbers_must_be_finite(text):
    with pytest.raises(DataError, match=r"x\.json: damaged JSON.*is not finite"):
        decode("x.json", text)
    with pytest.raises(ValueError, match="JSON compliant"):
        encode_json({"a": float("nan")})


def test_a_grey_jpeg_has_one_channel():
    ramp = np.repeat(np.arange(0, 240, 8, dtype=np.uint8)[None], 20, axis=0)
    decoded = decode("a.jpg", encode_jpeg(ramp))
    assert decoded.shape == (1, 20, 30)
    assert np.abs(decoded[0].astype(int) - ramp).max() < 4


def test_a_class_id_is_a_record():
    assert decode("cls", b"17") == decode("a.cls", b" 17\n") == {"cls": 17}


@pytest.mark.parametrize("text", [b"", b"-1", b"1.0", b"1e3", b"cat", b"1" * 10, "٣".encode()])
def test_only_digits_are_a_class_id(text):
    with pytest.raises(DataError, match="is not a class id of at most 9 digits"):
        decode("cls", text)


@pytest.mark.parametrize("text", [b"{", b"", b"\xff\xfe\xff", b"[" * 100_000])
def test_damaged_json_is_refused(text):
    with pytest.raises(DataError, match=r"x\.json: damaged JSON"):
        decode("x.json", text)


def test_json_must_be_an_object():
    with pytest.raises(DataError, match="list found, a JSON object is needed"):
        decode("x.json", b"[1]")


@pytest.mark.parametrize("member", ["a.pkl", "a.npy", "a.pyd", "a.png ", "a.png.gz", "a.PNG"])
def test_only_listed_suffixes_are_decoded(member):
    with pytest.raises(DataError, match="is not one of png, jpg, jpeg, planes, json, cls"):
        decode(member, encode_png(RGB))


def test_the_suffix_decides_not_the_content():
    with pytest.raises(DataError, match=r"a\.jpg: damaged JPEG"):
        decode("a.jpg", encode_png(RGB))


def test_sixteen_bit_colour_would_lose_bits():
    rows = (b"\0" + bytes(6 * 4)) * 3
    with pytest.raises(DataError, match="16-bit PNG in colour"):
        decode("a.png", raw_png(4, 3, 16, 2, rows))


@pytest.mark.parametrize("mode", ["RGBA", "P", "LA", "1"])
def test_other_png_modes_are_refused(mode):
    buffer = io.BytesIO()
    Image.new(mode, (4, 4)).save(buffer, format="PNG")
    with pytest.raises(DataError, match=f"PNG of mode {mode}, allowed are"):
        decode("a.png", buffer.getvalue())


def test_cmyk_jpeg_is_refused():
    buffer = io.BytesIO()
    Image.new("CMYK", (4, 4)).save(buffer, format="JPEG")
    with pytest.raises(DataError, match="JPEG of mode CMYK"):
        decode("a.jpg", buffer.getvalue())


def test_a_huge_picture_is_refused_before_it_is_decoded():
    with pytest.raises(DataError, match=f"8193x8192 pixels, at most {MAX_PIXELS} allowed"):
        decode("a.png", raw_png(8193, 8192, 8, 0, b""))
    with pytest.raises(DataError, match="damaged PNG"):
        decode("a.png", raw_png(60000, 60000, 8, 0, b""))


@pytest.mark.parametrize("cut", [0, 10, 24, 25, 26, 40, 500])
def test_truncated_pictures_are_refused(cut):
    with pytest.raises(DataError, match="damaged PNG"):
        decode("a.png", encode_png(GREY16)[:cut])
    with pytest.raises(DataError, match="damaged JPEG"):
        decode("a.jpg", encode_jpeg(RGB)[:cut])


@settings(max_examples=150, deadline=None)
@given(data=st.data(), kind=st.sampled_from(["png", "jpg", "json", "planes"]))
def test_damage_is_always_a_data_error(data, kind):
    encoded = {
        "png": encode_png(GREY16),
        "jpg": encode_jpeg(RGB),
        "json": encode_json({"a": 1.5, "b": [1, 2]}),
        "planes": encode_planes(GREY16),
    }[kind]
    place = data.draw(st.integers(0, len(encoded) - 1))
    damaged = encoded[:place] + data.draw(st.binary(max_size=4)) + encoded[place + 2 :]
    try:
        decode(f"a.{kind}", damaged)
    except DataError as error:
        assert str(error).startswith(f"a.{kind}: ")


@pytest.mark.parametrize(
    "array", [np.zeros((4, 4, 3), np.uint16), np.zeros((4, 4), np.float32), np.zeros((2, 4, 4, 3))]
)
def test_arrays_that_a_picture_cannot_hold_are_refused(array):
    with pytest.raises(ValueError, match=r"array: .* is not uint8"):
        encode_png(array)
    with pytest.raises(ValueError, match=r"array: .* is not uint8 \[H,W\] or \[H,W,3\]"):
        encode_jpeg(array)
