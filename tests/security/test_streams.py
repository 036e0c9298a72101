"""Tars from strangers, as streams and as shards: names, headers, sizes and records."""

import hashlib
import io
import json
import tarfile

import numpy as np
import pytest

from data_pipelines.decode import bounds
from data_pipelines.decode.codecs import decode, encode_png
from data_pipelines.errors import DataError
from data_pipelines.reading import streaming
from data_pipelines.reading.fields import LabelRequest
from data_pipelines.reading.streaming import stream_batches
from data_pipelines.shards.index_file import write_index
from data_pipelines.shards.manifest import Field, Manifest, Shard
from data_pipelines.shards.store import ShardStore
from data_pipelines.shards.writer import ShardWriter
from data_pipelines.transforms import Geometry
from tests.bounded import refusal

FIELDS = {
    "rgb": Field(member="rgb.png", kind="image", channels=3),
    "hat": Field(member="a.json", key="hat", kind="binary"),
}
IMAGE = encode_png(np.zeros((4, 4, 3), np.uint8))
SAMPLE = [("s.rgb.png", IMAGE), ("s.a.json", b'{"hat":1}')]


@pytest.fixture(autouse=True)
def small_buffer(monkeypatch):
    monkeypatch.setattr(streaming, "SHUFFLE_BUFFER", 4)


@pytest.fixture
def write(tmp_path):
    """Writes a tar of (name, content) pairs."""

    def write(entries, **options):
        path = tmp_path / "t.tar"
        with tarfile.open(path, "w", **{"format": tarfile.GNU_FORMAT, **options}) as tar:
            for name, content in entries:
                info = tarfile.TarInfo(name)
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
        return path

    return write


def stream(path, **options):
    manifest = Manifest(dataset="x", fields=FIELDS, splits={})
    options = {"seed": 0, "global_batch": 1, "num_steps": 6, "retry_seconds": 0.0} | options
    requests = [LabelRequest("hat", "hat")]
    return list(stream_batches(str(path), manifest, requests, Geometry((4, 4)), **options))


def store_of(path, samples=1):
    data = path.read_bytes()
    sha256 = hashlib.sha256(data).hexdigest()
    return ShardStore(
        path.parent, [Shard(name=path.name, samples=samples, bytes=len(data), sha256=sha256)]
    )


def refused_both_ways(path):
    """The message about a stream, which is also that about a shard."""
    message = refusal(lambda: stream(path))
    assert refusal(lambda: store_of(path).read(0, ["rgb.png", "a.json"])) == message
    return message


def test_a_duplicate_member_stops_a_stream(write):
    path = write([*SAMPLE, ("s.a.json", b'{"hat":0}')])
    assert refused_both_ways(path) == f"{path}: member 's.a.json' comes twice"


def test_a_duplicate_member_is_counted_where_damage_is_replaced(write):
    path = write([("r.rgb.png", IMAGE), *SAMPLE, ("s.a.json", b'{"hat":0}')])
    batches = stream(path, on_error="replace", num_steps=20)
    damage = [message for batch in batches for message in batch.damage]
    assert damage and set(damage) == {f"{path}: member 's.a.json' comes twice"}
    assert {key for batch in batches for key in batch.keys} == {"r", ""}


@pytest.mark.parametrize("name", ["fault", "damage", "key", "url", "bad", "local_path"])
def test_members_named_like_marks_are_data(write, name):
    """The marks of this project and of webdataset are no names that a member could have."""
    path = write([*SAMPLE, (f"s.__{name}__", b"x")])
    for on_error in ("stop", "replace"):
        for batch in stream(path, on_error=on_error):
            assert batch.keys == ("s",) and not batch.damage
            assert batch.scalars.tolist() == [[1.0]] and batch.valid_rows.all()
    assert store_of(path).read(0, [f"__{name}__"]) == ("s", {f"__{name}__": b"x"})


def test_errors_of_the_reader_are_not_taken_for_a_source_that_fails(write):
    """A tar without samples, of which webdataset raised a ValueError, is no transient failure."""
    path = write([("s.rgb.png", b"no picture")])
    with pytest.raises(DataError, match=r"t\.tar: sample s: rgb\.png: damaged PNG of 10 bytes"):
        stream(path, retry_seconds=120.0)


LONG = "n" * (bounds.MAX_NAME_BYTES + 1)


@pytest.mark.parametrize("tar_format", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_long_names(write, tar_format):
    at_most = "é" + LONG[: bounds.MAX_NAME_BYTES - len("é.rgb.png".encode())]
    path = write([(f"{at_most}.rgb.png", IMAGE)], format=tar_format)
    assert {batch.keys for batch in stream(path)} == {(at_most,)}
    path = write([(f"{LONG}.rgb.png", IMAGE)], format=tar_format)
    message = refused_both_ways(path)
    assert message.startswith(f"{path}: the member at byte ")
    assert "has a name of 4105 bytes, 'nnnn" in message
    assert message.endswith("...; allowed are at most 4096")


def huge_header(path, kind, size):
    """A header of names or attributes that says it has `size` bytes; the file has a hole there."""
    info = tarfile.TarInfo("x")
    info.type, info.size = kind, size
    header = info.tobuf(tarfile.GNU_FORMAT)
    with open(path, "wb") as file:
        file.write(header)
        file.truncate(len(header) + size + 512)
    return path


@pytest.mark.parametrize("kind", [tarfile.GNUTYPE_LONGNAME, tarfile.XHDTYPE])
def test_headers_of_gigabytes_are_not_read(tmp_path, kind):
    path = huge_header(tmp_path / "t.tar", kind, 4 * 10**9)
    expected = (
        f"{path}: the header at byte 0 has 4000000000 bytes of names and attributes, allowed are "
        f"at most {bounds.MAX_TAR_RECORD_BYTES}"
    )
    assert refusal(lambda: stream(path)) == expected
    assert refusal(lambda: write_index(path)) == expected


@pytest.mark.parametrize("records", [b"5 a=\n" * 200_000, b"9" * 10**6, b"9" * 30 + b" path=x\n"])
def test_pax_records_without_an_end(tmp_path, records):
    """Each was copied with all that follow it."""
    info = tarfile.TarInfo("s.rgb.png")
    info.type, info.size = tarfile.XHDTYPE, len(records)
    path = tmp_path / "t.tar"
    path.write_bytes(info.tobuf() + records + bytes(-len(records) % 512) + bytes(512))
    message = refusal(lambda: stream(path))
    assert "damaged pax header: record length" in message or "end-of-archive mark" in message
    assert len(message) < 300
    assert refusal(lambda: write_index(path)).startswith(f"{path}: ")


def test_a_member_that_is_too_large_is_not_read(tmp_path):
    size = bounds.MAX_MEMBER_BYTES + 1
    path = tmp_path / "t.tar"
    info = tarfile.TarInfo("s.rgb.png")
    info.size = size
    with open(path, "wb") as file:
        file.write(info.tobuf())
        file.truncate(512 + size + 2048)
    expected = f"{path}: sample s: rgb.png: {size} bytes, allowed are at most {size - 1}"
    assert refusal(lambda: stream(path)) == expected


def test_a_large_member_that_no_task_needs_is_passed_over(write, monkeypatch):
    monkeypatch.setattr(bounds, "MAX_MEMBER_BYTES", 1000)
    path = write([*SAMPLE, ("s.mp4", bytes(5000))])
    assert {batch.keys for batch in stream(path)} == {("s",)}
    assert store_of(path).read(0, ["a.json"])[1] == {"a.json": b'{"hat":1}'}
    with pytest.raises(DataError, match=r"sample s: mp4: 5000 bytes, allowed are at most 1000"):
        store_of(path).read(0, ["mp4"])


def test_a_sample_that_is_too_large_is_not_read(write, monkeypatch):
    monkeypatch.setattr(bounds, "MAX_SAMPLE_BYTES", 50)
    path = write(SAMPLE)
    for attack in (lambda: stream(path), lambda: store_of(path).read(0, ["rgb.png", "a.json"])):
        message = refusal(attack)
        assert message.startswith(f"{path}: sample s: the members that the tasks need have ")
        assert message.endswith(" bytes, allowed are at most 50")


def test_a_sample_of_too_many_members(write):
    """Each was compared with all before it."""
    path = write([(f"s.m{number}", b"") for number in range(bounds.MAX_SAMPLE_MEMBERS + 1)])
    assert refused_both_ways(path) == (
        f"{path}: member 's.m4096': its sample has more than 4096 members"
    )


def deep(depth):
    return b'{"hat":1,"x":' + b"[" * (depth - 1) + b"]" * (depth - 1) + b"}"


RECORDS = {
    "large": (
        json.dumps({"hat": 1, "x": "y" * bounds.MAX_RECORD_BYTES}).encode(),
        "bytes, allowed",
    ),
    "deep": (deep(bounds.MAX_RECORD_DEPTH + 1), "JSON of more than 32 objects and arrays inside"),
    "deepest": (b"[" * 10**6, "damaged JSON of 1000000 bytes"),
    "many digits": (b'{"hat":' + b"9" * 10**6 + b"}", "damaged JSON of 1000008 bytes"),
}


@pytest.mark.parametrize("case", RECORDS)
def test_records_that_are_too_large(write, case):
    record, expected = RECORDS[case]
    path = write([("s.rgb.png", IMAGE), ("s.a.json", record)])
    message = refusal(lambda: stream(path))
    assert message.startswith(f"{path}: sample s: a.json: ")
    assert expected in message


def test_records_within_the_bounds():
    assert decode("a.json", deep(bounds.MAX_RECORD_DEPTH))["hat"] == 1
    many = {f"label {number}": {"value": number} for number in range(2000)}
    assert decode("a.json", json.dumps(many).encode()) == many


def test_nothing_is_written_that_is_not_read(tmp_path):
    with ShardWriter(tmp_path, "train") as writer:
        writer.write("a", {"rgb.png": b"1"})
        with pytest.raises(DataError, match=r"a\.json: \d+ bytes, allowed are at most 1048576"):
            writer.write("b", {"a.json": bytes(bounds.MAX_RECORD_BYTES + 1)})
    assert writer.shards[0].samples == 1
