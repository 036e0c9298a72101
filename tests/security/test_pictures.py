"""Pictures from strangers: bounded in size, of known formats, upright, and never misread."""

import io
import struct
import subprocess
import sys
import zlib

import numpy as np
import pyarrow
import pytest
from PIL import EpsImagePlugin, Image, ImageOps

from data_pipelines.convert.columns import ColumnReader
from data_pipelines.convert.dataset_files import DatasetFiles
from data_pipelines.convert.foreign import convert_image, label_picture
from data_pipelines.convert.pictures import stored_label
from data_pipelines.convert.tally import MissingLabel, Tally
from data_pipelines.decode.codecs import decode, decode_sample, encode_jpeg, encode_png
from data_pipelines.decode.planes import MAX_BYTES, encode_planes
from data_pipelines.errors import DataError
from data_pipelines.shards.encoded import Storage
from data_pipelines.shards.manifest import Field
from dmtg import pictures as decode_pictures
from dmtg.pictures import (
    FORMATS,
    LABEL_PIXELS,
    MAX_PHOTO_PIXELS,
    check_photo,
    read_photo,
)
from tests.processes import ROOT
from trainer.prediction.predict import predict_files

RNG = np.random.default_rng(0)
PHOTO = RNG.integers(0, 256, (24, 40, 3)).astype(np.uint8)
ORIENTATION = 0x112
MAX_MEGABYTES = 200
EPS = b"""%!PS-Adobe-3.0 EPSF-3.0
%%BoundingBox: 0 0 8 8
%%EndComments
(/tmp/started) (w) file closefile
%%EOF
"""


def saved(picture, kind="PNG", **options):
    buffer = io.BytesIO()
    picture = Image.fromarray(picture) if isinstance(picture, np.ndarray) else picture
    picture.save(buffer, format=kind, **options)
    return buffer.getvalue()


def tagged(picture, orientation, kind="JPEG"):
    """A picture that is to be turned when it is shown."""
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    options = {"quality": 95, "subsampling": 0} if kind == "JPEG" else {}
    return saved(picture, kind, exif=exif, **options)


def png_of_zeros(width, height):
    """One bit per pixel, valid and complete."""

    def chunk(kind, data):
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    header = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    rows = zlib.compress(bytes((1 + -(-width // 8)) * height))
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")
    )


def planes_of_zeros(channels, height, width, code=1):
    """Valid and complete planes of any size; codes 1 to 3 are uint8, uint16 and float32."""
    head = struct.pack("<4sBBBBII", b"DMPL", 1, code, 2, channels, height, width)
    content = bytes(channels * height * width * {1: 1, 2: 2, 3: 4}[code])
    payload = pyarrow.compress(content, "zstd", asbytes=True)
    return head + struct.pack("<I", zlib.crc32(payload, zlib.crc32(head))) + payload


def megabytes(code, *arguments):
    """Return by how much a process's memory grows while it runs the code, after its imports."""
    script = f"""
import sys
from pathlib import Path
from data_pipelines.convert.foreign import convert_image
from data_pipelines.convert.tally import MissingLabel
from data_pipelines.decode.codecs import decode, decode_sample
from dmtg.pictures import PictureError, check_photo, read_photo
from data_pipelines.shards.encoded import Storage
path = Path(sys.argv[1])
decode("warm.png", Path(sys.argv[2]).read_bytes())
def peak():
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))
before = peak()
{code}
print((peak() - before) * 1024 / 1e6)
"""
    command = [sys.executable, "-c", script, *map(str, arguments)]
    end = subprocess.run(
        command, capture_output=True, text=True, env={"PYTHONPATH": str(ROOT)}, check=False
    )
    assert end.returncode == 0, end.stderr
    assert not end.stderr  # no warning either
    return float(end.stdout.splitlines()[-1])


@pytest.fixture
def peak(tmp_path):
    """Write bytes to a file; return the memory that code needs for `path`."""
    if sys.platform != "linux":
        pytest.skip("reads /proc/self/status")

    def measure(data, name, code):
        (tmp_path / "warm.png").write_bytes(encode_png(PHOTO))
        (tmp_path / name).write_bytes(data)
        return megabytes(code, tmp_path / name, tmp_path / "warm.png")

    return measure


REFUSED = """
try:
    {call}
except (PictureError, MissingLabel) as error:
    assert {message!r} in str(error), error
else:
    raise SystemExit("accepted")
"""


@pytest.mark.parametrize(
    ("call", "message"),
    [
        ("check_photo(path)", f"huge.png: 13000x13000 pixels, at most {MAX_PHOTO_PIXELS} allowed"),
        ("read_photo(str(path), path)", "huge.png: 13000x13000 pixels, at most"),
        ("decode('rgb.png', path.read_bytes())", "rgb.png: 13000x13000 pixels, at most"),
        ("convert_image(Storage(), path.read_bytes(), 64)", "too large"),
    ],
)
def test_a_huge_picture_is_refused_by_its_header(peak, call, message):
    code = REFUSED.format(call=call, message=message)
    assert peak(png_of_zeros(13000, 13000), "huge.png", code) < 20


def test_huge_planes_beside_a_small_image_are_refused_by_their_header(peak):
    sample = "{'rgb.png': Path(sys.argv[2]).read_bytes(), 'depth.planes': path.read_bytes()}"
    limit = LABEL_PIXELS * 24 * 40
    message = (
        f"depth.planes: 8192x8192 pixels, at most {limit} allowed, 64 times those of the image"
    )
    code = REFUSED.format(call=f"decode_sample('rgb.png', {sample})", message=message)
    assert peak(planes_of_zeros(1, 8192, 8192), "a.planes", code) < 20


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("a.png", png_of_zeros(8192, 8192)),
        ("a.planes", planes_of_zeros(1, 8192, 8192)),
        ("a.planes", planes_of_zeros(255, 512, 512)),
    ],
)
def test_pictures_over_the_bound_are_refused_in_little_memory(peak, name, data):
    code = """
try:
    decode(path.name, path.read_bytes())
except ValueError as error:
    assert "at most" in str(error), error
else:
    raise SystemExit("accepted")
"""
    assert peak(data, name, code) < 20


@pytest.mark.parametrize("channels", [1, 3])
def test_the_largest_pictures_are_read_under_200_mb(peak, channels):
    """24 megapixels, as of a camera."""
    shape = (4096, 6144, 3)[: 2 + (channels > 1)]
    data = saved(np.full(shape, 77, np.uint8), "JPEG")
    code = "assert decode('a.jpg', path.read_bytes()).shape[1:] == (4096, 6144)"
    assert 20 < peak(data, "a.jpg", code) < MAX_MEGABYTES
    if channels > 1:
        code = "assert read_photo(str(path), path).shape == (4096, 6144, 3)"
        assert peak(data, "a.jpg", code) < MAX_MEGABYTES


def test_a_photo_of_a_phone_is_converted_to_a_size_that_can_be_stored():
    photo = saved(np.full((6144, 8192), 77, np.uint8), "JPEG")
    member, shape = convert_image(Storage(), photo, 512)
    assert shape == (6144, 8192) and decode("a.jpg", member).shape == (3, 512, 683)
    with pytest.raises(MissingLabel, match="too large to be stored without --size"):
        convert_image(Storage(), photo, None)


@pytest.mark.parametrize(
    ("code", "shape"), [(1, (3, 4096, 4096)), (2, (1, 4096, 4096)), (3, (1, 3000, 4000))]
)
def test_the_largest_planes_are_read_under_200_mb(peak, code, shape):
    data = planes_of_zeros(*shape, code)
    read = f"assert decode('a.planes', path.read_bytes()).nbytes > {MAX_BYTES} // 2"
    assert 40 < peak(data, "a.planes", read) < MAX_MEGABYTES


@pytest.mark.parametrize("shape", [(512, 512), (2160, 3840)])
def test_labels_of_real_sizes_are_read(shape):
    label = np.zeros(shape, np.uint16)
    label[:, ::2] = 7
    small = encode_jpeg(np.zeros((shape[0] // 8, shape[1] // 8, 3), np.uint8))
    members = {"depth.planes": encode_planes(label), "rgb.jpg": small}  # the label comes first
    np.testing.assert_array_equal(decode_sample("rgb.jpg", members)["depth.planes"][0], label)


def test_postscript_is_not_started(tmp_path, monkeypatch):
    def started(*_arguments, **_options):
        pytest.fail("an interpreter of PostScript was started")

    monkeypatch.setattr(EpsImagePlugin, "Ghostscript", started)
    (tmp_path / "photo.jpg").write_bytes(EPS)
    assert "EPS" not in FORMATS
    for read in (check_photo, lambda path: read_photo(str(path), path)):
        with pytest.raises(DataError, match=r"photo\.jpg: cannot be read as JPEG, PNG, .*unknown"):
            read(tmp_path / "photo.jpg")
    with pytest.raises(DataError, match=r"photo\.jpg: damaged JPEG"):
        decode("photo.jpg", EPS)
    for convert in (lambda: convert_image(Storage(), EPS, None), lambda: label_picture(EPS)):
        with pytest.raises(MissingLabel, match="unreadable"):
            convert()


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF", "WEBP"])
def test_every_photo_is_upright(kind, orientation):
    data = tagged(PHOTO, orientation, kind)
    with Image.open(io.BytesIO(data)) as image:
        expected = np.asarray(ImageOps.exif_transpose(image).convert("RGB"))
    assert (expected.shape[0] > expected.shape[1]) == (orientation > 4)
    np.testing.assert_array_equal(read_photo("a", data), expected)
    stored, shape = convert_image(Storage(portable=True), data, None)
    assert shape == expected.shape[:2]
    np.testing.assert_array_equal(decode("a.png", stored), expected.transpose(2, 0, 1))
    if kind in ("JPEG", "PNG"):
        suffix = {"JPEG": "jpg", "PNG": "png"}[kind]
        member = decode(f"a.{suffix}", data)
        np.testing.assert_array_equal(member, expected.transpose(2, 0, 1))


@pytest.mark.parametrize("orientation", [1, 3, 6])
def test_a_stored_jpeg_is_upright_in_every_reader(orientation):
    data = tagged(PHOTO, orientation)
    stored, shape = convert_image(Storage(), data, None)
    assert (stored == data) == (orientation == 1)  # copied without loss where it can be
    with Image.open(io.BytesIO(stored)) as image:
        assert image.size == shape[::-1]
        difference = np.abs(np.asarray(image).astype(int) - read_photo("a", data))
    assert difference.mean() < 3


def test_a_label_beside_a_turned_photo_fits_it():
    """As it is drawn on the upright photo, 40 high and 24 wide."""
    label = np.arange(40 * 24).reshape(40, 24).astype(np.uint16)
    fields = {
        "rgb": Field(member="rgb.jpg", kind="image", channels=3),
        "depth": Field(member="depth.planes", kind="dense_regression"),
    }
    columns = {"rgb": "rgb", "depth": "depth"}
    files, storage = DatasetFiles("rooms"), Storage()
    reader = ColumnReader("rgb", columns, ("rgb", "depth"), fields, None, storage, files)
    tally = Tally(fields)
    row = {"rgb": tagged(PHOTO, 6), "depth": saved(label)}
    members = reader.sample("a", row, tally).members
    assert not tally.missing and not tally.skipped
    decoded = decode_sample("rgb.jpg", members)
    assert decoded["rgb.jpg"].shape == (3, 40, 24)
    np.testing.assert_array_equal(decoded["depth.planes"][0], label)


@pytest.mark.parametrize(
    "exif", [b"Exif\0\0", b"Exif\0\0garbage", b"Exif\0\0II*\0\xff\xff\xff\xff"]
)
def test_a_damaged_tag_does_not_hide_an_intact_photo(exif):
    data = saved(PHOTO, "JPEG", exif=exif)
    np.testing.assert_array_equal(read_photo("a", data), decode("a.jpg", data).transpose(1, 2, 0))


RAMP = np.linspace(0, 65535, 24 * 40).round().astype(np.uint16).reshape(24, 40)


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "big-endian TIFF"])
def test_sixteen_bits_are_scaled_not_clipped(kind):
    picture = Image.fromarray(RAMP)
    if kind.startswith("big"):
        picture = Image.frombytes("I;16B", (40, 24), RAMP.astype(">u2").tobytes())
    photo = read_photo("a", saved(picture, kind.split()[-1]))
    assert photo.dtype == np.uint8 and photo.shape == (24, 40, 3)
    assert photo[0, 0].tolist() == [0, 0, 0] and photo[-1, -1].tolist() == [255, 255, 255]
    assert np.abs(photo - RAMP[..., None] / 257).max() <= 0.5


def test_sixteen_bit_colours_are_scaled_in_photos_and_refused_in_labels():
    header = struct.pack(">IIBBBBB", 40, 24, 16, 2, 0, 0, 0)
    rows = b"".join(b"\0" + np.repeat(row, 3).astype(">u2").tobytes() for row in RAMP)
    chunks = [(b"IHDR", header), (b"IDAT", zlib.compress(rows)), (b"IEND", b"")]
    data = b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(d)) + kind + d + struct.pack(">I", zlib.crc32(kind + d))
        for kind, d in chunks
    )
    assert np.abs(read_photo("a", data) - RAMP[..., None] / 257.0).max() <= 1
    with pytest.raises(MissingLabel, match="16-bit colours"):
        label_picture(data)
    with pytest.raises(DataError, match=r"normal\.png: 16-bit PNG in colour"):
        decode("normal.png", data)


@pytest.mark.parametrize(
    ("picture", "mode"),
    [
        (np.linspace(0, 1, 960).astype(np.float32).reshape(24, 40), "F"),
        (np.full((24, 40), 70000, np.int32), "I"),
    ],
)
def test_numbers_of_unknown_range_are_refused_as_photos(tmp_path, picture, mode):
    (tmp_path / "a.tif").write_bytes(saved(picture, "TIFF"))
    for read in (check_photo, lambda path: read_photo(str(path), path)):
        with pytest.raises(DataError, match=rf"a\.tif: TIFF of mode {mode}, allowed are 1, L"):
            read(tmp_path / "a.tif")
    with pytest.raises(MissingLabel, match=f"picture of mode {mode}"):
        convert_image(Storage(), saved(picture, "TIFF"), None)


def test_transparency_is_blended_with_white():
    rgba = np.dstack([PHOTO, np.full((24, 40), 255, np.uint8)])
    np.testing.assert_array_equal(read_photo("a", saved(rgba)), PHOTO)
    rgba[:12, :, 3] = 0
    photo = read_photo("a", saved(rgba))
    assert (photo[:12] == 255).all()
    np.testing.assert_array_equal(photo[12:], PHOTO[12:])
    palette = Image.fromarray(np.tile(np.arange(40, dtype=np.uint8) % 2, (24, 1)), "P")
    palette.putpalette([10, 20, 30, 40, 50, 60])
    photo = read_photo("a", saved(palette, transparency=1))
    assert photo[0, 0].tolist() == [10, 20, 30] and photo[0, 1].tolist() == [255, 255, 255]
    np.testing.assert_array_equal(label_picture(saved(palette))[0, 0, :4], [0, 1, 0, 1])


def test_parts_of_a_picture_are_the_whole(monkeypatch):
    pictures = [saved(PHOTO), saved(PHOTO[..., 0]), saved(RAMP), tagged(PHOTO, 6)]
    whole = [read_photo("a", data) for data in pictures]
    monkeypatch.setattr(decode_pictures, "_WHOLE_PIXELS", 100)
    monkeypatch.setattr(decode_pictures, "_STRIP_PIXELS", 7 * 40)  # of 24 rows
    for data, expected in zip(pictures, whole, strict=True):
        np.testing.assert_array_equal(read_photo("a", data), expected)


def test_the_label_of_a_photo_may_have_as_many_pixels(monkeypatch):
    """It is converted where `--size` makes it small enough to be stored, as its photo is."""
    monkeypatch.setattr("data_pipelines.convert.pictures.MAX_PIXELS", 20 * 40)
    monkeypatch.setattr(decode_pictures.read_values, "__defaults__", (20 * 40,))
    ids = np.arange(24 * 40).reshape(24, 40).astype(np.uint8) % 5
    picture = label_picture(saved(ids))
    np.testing.assert_array_equal(picture[0], ids)
    for portable in (False, True):
        stored = stored_label(Storage(portable), picture, 12, (24, 40))
        suffix = "png" if portable else "planes"
        assert decode(f"a.{suffix}", stored).shape == (1, 12, 20)
        with pytest.raises(MissingLabel, match="too large to be stored without --size"):
            stored_label(Storage(portable), picture, None, (24, 40))


def test_a_label_larger_than_any_photo_is_refused():
    width = MAX_PHOTO_PIXELS // 4096 + 1
    with pytest.raises(MissingLabel, match="too large"):
        label_picture(png_of_zeros(width, 4096))


def test_cmyk_becomes_rgb():
    cmyk = Image.fromarray(np.full((24, 40, 3), (200, 100, 50), np.uint8)).convert("CMYK")
    photo = read_photo("a", saved(cmyk, "JPEG", quality=100))
    assert np.abs(photo.astype(int) - (200, 100, 50)).max() <= 3
    stored, _ = convert_image(Storage(), saved(cmyk, "JPEG", quality=100), None)
    assert decode("a.jpg", stored).shape == (3, 24, 40)


@pytest.mark.parametrize("size", [64, 256, 1024])
def test_noise_does_not_end_a_conversion(size):
    """The buffer of Pillow's optimizing encoder is too small for it."""
    noise = RNG.integers(0, 2, (size, size, 3)).astype(np.uint8) * 255
    stored, _ = convert_image(Storage(), saved(noise), None)
    difference = np.abs(decode("a.jpg", stored).astype(int) - noise.transpose(2, 0, 1))
    assert difference.mean() < 8
    assert encode_jpeg(PHOTO) == saved(PHOTO, "JPEG", quality=95, subsampling=0, optimize=True)


def test_a_picture_too_long_for_a_jpeg_is_counted():
    long = png_of_zeros(70_000, 2)
    with pytest.raises(MissingLabel, match="picture that cannot be stored"):
        convert_image(Storage(), long, None)
    with pytest.raises(ValueError, match=r"array: \[2, 70000, 3\] cannot be a JPEG"):
        encode_jpeg(np.zeros((2, 70_000, 3), np.uint8))
    assert convert_image(Storage(portable=True), long, None)[1] == (2, 70_000)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF", "PPM"])
def test_damaged_photos_of_every_format_are_errors_that_name_the_file(kind):
    good = saved(PHOTO, kind)
    for number in range(60):
        place = int(RNG.integers(len(good)))
        damaged = bytearray(good[:place] if number % 2 else good)
        if not number % 2:
            damaged[place : place + 4] = RNG.bytes(4)
        try:
            assert read_photo("photo.x", bytes(damaged)).shape[2] == 3
        except DataError as error:
            assert str(error).startswith("photo.x: ")


def test_a_bad_last_photo_is_known_before_anything_is_written(tmp_path):
    """The model does not exist: the photos are read first."""
    paths = [tmp_path / "a.png", tmp_path / "b.png"]
    paths[0].write_bytes(saved(PHOTO))
    paths[1].write_bytes(b"no picture")
    with pytest.raises(DataError, match=r"b\.png: cannot be read as JPEG, PNG"):
        predict_files(tmp_path / "no.safetensors", paths, tmp_path / "out")
    assert not (tmp_path / "out").exists()
