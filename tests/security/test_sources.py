"""Servers and folders that hand out more than they should: endless, compressed, enormous files."""

import gzip
import hashlib
import json
import os

import numpy as np
import pyarrow
import pytest
from pyarrow import parquet
from safetensors.numpy import load, save

from data_pipelines.convert.streamed_dataset import StreamedDataset
from data_pipelines.decode.codecs import encode_png
from data_pipelines.errors import DataError, SourceError
from data_pipelines.reading import streaming
from data_pipelines.reading.fields import LabelRequest
from data_pipelines.reading.streaming import stream_batches
from data_pipelines.shards import remote
from data_pipelines.shards.cache import ShardCache
from data_pipelines.shards.manifest import (
    MAX_INDEX_BYTES,
    MAX_MANIFEST_BYTES,
    MAX_MANIFEST_ENTRIES,
    Field,
    IndexFile,
    Manifest,
    Shard,
)
from data_pipelines.shards.sources import open_folder
from data_pipelines.shards.store import ShardStore
from data_pipelines.shards.writer import ShardWriter
from data_pipelines.transforms import Geometry
from tests.bounded import refusal
from tests.servers import FileServer, HostileServer

SIX_GB = 6 * 10**9
SHA = "0" * 64
SHARD = Shard(name="t.tar", samples=1, bytes=10240, sha256=SHA)
INDEXED = SHARD.model_copy(update={"index": IndexFile(bytes=1000, sha256=SHA)})
FIELDS = {
    "rgb": Field(member="rgb.png", kind="image", channels=3),
    "hat": Field(member="a.json", key="hat", kind="binary"),
}


@pytest.fixture
def hostile():
    pytest.importorskip("aiohttp", reason="fsspec speaks HTTP through aiohttp")
    with HostileServer() as server:
        yield server
        server.shutdown()


@pytest.fixture
def small(tmp_path):
    """Shards of three samples, and their manifest."""
    root = tmp_path / "small"
    with ShardWriter(root, "train") as writer:
        for number in range(3):
            picture = np.full((4, 4, 3), number, np.uint8)
            writer.write(
                f"s{number}",
                {"rgb.png": encode_png(picture), "a.json": b'{"hat":%d}' % (number % 2)},
            )
    split = writer.split({"rgb": 3, "hat": 3})
    manifest = Manifest(dataset="small", fields=FIELDS, splits={"train": split})
    manifest.save(root)
    return root, manifest


def written(folder, text):
    folder.mkdir(exist_ok=True)
    (folder / "manifest.json").write_text(text)
    return folder


@pytest.mark.parametrize("length", [None, SIX_GB])
def test_a_manifest_without_an_end_is_read_up_to_the_bound(hostile, length):
    hostile.block = b" " * 2**16
    if length is not None:
        hostile.answer_headers["Content-Length"] = str(length)
    message = refusal(lambda: Manifest.load(hostile.url))
    assert f"{hostile.url}/manifest.json: the server sent more than {MAX_MANIFEST_BYTES}" in message
    assert "which are allowed" in message
    # What is on its way in the buffers of both ends when the client hangs up counts, too.
    assert hostile.sent < (2**24 if length else MAX_MANIFEST_BYTES + 2**24)
    assert len(hostile.requests) == 1


@pytest.mark.parametrize("status", [200, 206])
@pytest.mark.parametrize("what", ["shard", "index", "copy"])
def test_a_range_without_an_end_is_read_up_to_its_length(hostile, tmp_path, what, status):
    hostile.status = status
    cache = ShardCache(tmp_path, 10**6) if what == "copy" else None
    folder = open_folder(hostile.url, cache)

    def attack():
        if what == "shard":
            return folder._remote.read("t.tar", 512, 100)
        return ShardStore(folder, [INDEXED]).read(0, ["rgb.png"])

    size = {"shard": 100, "index": 1000, "copy": 10240}[what]
    message = refusal(attack)
    if status == 206:
        assert f"the server sent more than {size} bytes, which were asked for" in message
    else:
        assert "the server does not give ranges of bytes, it sent all" in message
    assert message.startswith(f"{hostile.url}/t.tar")
    assert hostile.sent < 2**24


@pytest.mark.parametrize("encoding", ["gzip", "br", "Deflate", "aws-chunked, zstd"])
def test_compressed_answers_are_refused_unread(hostile, encoding):
    hostile.block, hostile.repeats = gzip.compress(bytes(2**28), 1), 1
    hostile.answer_headers["Content-Encoding"] = encoding
    expected = f"the server sent Content-Encoding '{encoding.lower()}', allowed is identity"
    assert expected in refusal(lambda: Manifest.load(hostile.url))
    store = ShardStore(hostile.url, [INDEXED])
    assert expected in refusal(lambda: store.read(0, ["rgb.png"]))
    assert [request["Accept-Encoding"] for request in hostile.requests] == ["identity"] * 2


@pytest.mark.parametrize("encoding", ["aws-chunked", "Identity", "utf-8, aws-chunked"])
def test_encodings_that_compress_nothing_are_read(hostile, small, encoding):
    """S3 repeats the `aws-chunked` of an upload, whose body is plain."""
    root, manifest = small
    hostile.block, hostile.repeats = (root / "manifest.json").read_bytes(), 1
    hostile.answer_headers["Content-Encoding"] = encoding
    assert Manifest.load(hostile.url) == manifest


@pytest.mark.parametrize("on_error", ["stop", "replace"])
@pytest.mark.parametrize("status", [401, 403])
def test_refused_access_ends_a_run_at_once(hostile, status, on_error):
    """It is neither a missing file nor damage, nor a failure that passes."""
    hostile.status, hostile.repeats = status, 1
    for read in (
        lambda: Manifest.load(hostile.url),
        lambda: ShardStore(hostile.url, [INDEXED]).read(0, ["rgb.png"]),
        lambda: stream(f"{hostile.url}/t.tar", on_error=on_error),
    ):
        hostile.requests.clear()
        with pytest.raises(
            SourceError, match=rf"{hostile.url}/\S+: the server refuses access: {status} "
        ):
            read()
        assert len(hostile.requests) <= 2  # fsspec first sends a request for the size of a tar


def test_a_refused_connection_of_a_stream_is_tried_again(monkeypatch):
    monkeypatch.setattr(remote, "FIRST_WAIT", 0.001)
    with pytest.raises(SourceError, match=r"failed, as \d+ tars before in 0\.1 s: ClientConnector"):
        stream("http://127.0.0.1:9/t.tar", retry_seconds=0.1)


def test_a_missing_tar_of_a_stream_is_named(hostile):
    hostile.status, hostile.repeats = 404, 1
    with pytest.raises(DataError, match=r"/t\.tar: missing$"):
        stream(f"{hostile.url}/t.tar", retry_seconds=0.1)


def test_an_error_with_an_endless_page_is_tried_again(hostile, monkeypatch):
    monkeypatch.setattr(remote, "FIRST_WAIT", 0.001)
    hostile.status = 503
    hostile.answer_headers["Content-Encoding"] = "gzip"  # as error pages often are
    with pytest.raises(SourceError, match=r"failed \d+ times in 0\.1 s, at last with ClientResp"):
        Manifest.load(open_folder(hostile.url, retry_seconds=0.1))
    assert len(hostile.requests) > 1


def stream(url, **options):
    manifest = Manifest(dataset="x", fields=FIELDS, splits={})
    options = {"seed": 0, "global_batch": 1, "num_steps": 2} | options
    requests = [LabelRequest("hat", "hat")]
    return list(stream_batches(url, manifest, requests, Geometry((4, 4)), **options))


def test_streams_ask_for_no_more_than_they_read(hostile, monkeypatch):
    """fsspec reads a tar in ranges; an answer longer than its range is refused."""
    monkeypatch.setattr(streaming, "SHUFFLE_BUFFER", 4)
    hostile.status = 206
    hostile.answer_headers = {"Content-Length": str(SIX_GB), "Accept-Ranges": "bytes"}
    message = refusal(lambda: stream(f"{hostile.url}/t.tar"))
    assert "the server sent more than" in message and "t.tar" in message
    assert hostile.sent < 2**25


def test_compressed_streams_are_refused(hostile):
    hostile.answer_headers["Content-Encoding"] = "gzip"
    message = refusal(lambda: stream(f"{hostile.url}/t.tar"))
    assert "t.tar: the server sent Content-Encoding 'gzip', allowed is identity" in message


def test_sound_servers_are_read_as_before(small):
    root, manifest = small
    with FileServer(root) as server:
        assert Manifest.load(server.url) == manifest
        store = ShardStore(server.url, manifest.split("train").shards)
        assert store.read(1, ["a.json"]) == ("s1", {"a.json": b'{"hat":1}'})
        server.shutdown()


def test_a_manifest_of_six_gigabytes_is_not_read(tmp_path):
    path = written(tmp_path / "x", "{") / "manifest.json"
    os.truncate(path, SIX_GB)
    message = refusal(lambda: Manifest.load(tmp_path / "x"))
    assert message.startswith(f"{path}: {SIX_GB} bytes, allowed are at most {MAX_MANIFEST_BYTES}")


def test_a_parquet_file_that_decompresses_to_gigabytes(tmp_path):
    column = pyarrow.array([bytes(2**20)]).take(pyarrow.array([0] * 400))
    path = tmp_path / "train.parquet"
    parquet.write_table(
        pyarrow.table({"photo": column}), path, compression="zstd", use_dictionary=False
    )
    del column
    assert path.stat().st_size < 10**6
    for dataset in (path, tmp_path):
        message = refusal(
            lambda dataset=dataset: StreamedDataset(str(dataset), None, 0, None).splits()
        )
        assert message.startswith(f"{path}: row group 0 has 4194")
        assert "allowed are 268435456, or 256 times as many" in message


@pytest.mark.parametrize("kind", ["pipe", "device"])
def test_a_manifest_that_is_no_file_is_not_read(tmp_path, kind):
    path = tmp_path / "manifest.json"
    os.mkfifo(path) if kind == "pipe" else path.symlink_to("/dev/zero")
    assert refusal(lambda: Manifest.load(tmp_path)).startswith(f"{path}: not a regular file")


def test_a_shard_that_is_a_pipe_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "t.tar")
    message = refusal(lambda: ShardStore(tmp_path, [SHARD]).read(0, ["rgb.png"]))
    assert "t.tar: truncated shard: 0 bytes, manifest says 10240" in message


def manifest_text(**changes):
    parts = {
        "fields": '{"rgb":{"member":"rgb.png","kind":"image"}}',
        "labelled": "{}",
        "shards": "[]",
        "conversion": "null",
    } | changes
    return (
        f'{{"dataset":"x","fields":{parts["fields"]},"conversion":{parts["conversion"]},"splits":'
        f'{{"train":{{"labelled":{parts["labelled"]},"shards":{parts["shards"]}}}}}}}'
    )


def entries(value, count):
    return "{" + ",".join(f'"{number}":{value}' for number in range(count)) + "}"


def shard_text(**changes):
    return json.dumps([SHARD.model_dump() | changes])


FULL = MAX_MANIFEST_ENTRIES - 100
MANIFESTS = {
    "many numbers": (manifest_text(shards=f"[{'0,' * 10**6}0]"), "shards.0: 0: Input should"),
    "many lists": (manifest_text(shards=f"[{'[],' * 10**6}0]"), "values, allowed are at most"),
    "many fields": (manifest_text(fields=entries("0", FULL)), "errors: not a manifest"),
    "many counts": (manifest_text(labelled=entries("-1", FULL)), "errors: not a manifest"),
    "more entries": (manifest_text(labelled=entries("-1", 10**6)), "entries, allowed are at most"),
    "many arguments": (
        manifest_text(conversion=f'{{"source":"x","arguments":{entries("{}", FULL)}}}'),
        "arguments, allowed are at most 1000",
    ),
    "deep": (manifest_text(shards="[" * 10**6), "Invalid JSON: recursion limit exceeded"),
    "samples": (
        manifest_text(shards=shard_text(samples=10**18)),
        "shards.0.samples: 1000000000000000000: Input should be less than or equal to",
    ),
    "shard": (
        manifest_text(shards=shard_text(bytes=10**18)),
        "shards.0.bytes: 1000000000000000000",
    ),
    "index": (
        manifest_text(shards=shard_text(index={"bytes": SIX_GB, "sha256": SHA})),
        f"shards.0.index.bytes: {SIX_GB}: Input should be less than or equal to {MAX_INDEX_BYTES}",
    ),
    "channels": (
        manifest_text(
            fields='{"d":{"member":"d.png","kind":"dense_regression","channels":1000000}}'
        ),
        "fields.d.channels: 1000000: Input should be less than or equal to 255",
    ),
    "a digit that does not end": (
        manifest_text(
            shards=shard_text(samples=1).replace('"samples": 1', f'"samples": {"9" * 5000}')
        ),
        "Invalid JSON: number out of range",
    ),
}


@pytest.mark.parametrize("case", MANIFESTS)
def test_manifests_that_would_fill_the_memory(tmp_path, case):
    text, expected = MANIFESTS[case]
    written(tmp_path, text)
    del text
    message = refusal(lambda: Manifest.load(tmp_path))
    assert message.startswith(f"{tmp_path}/manifest.json: ")
    assert expected in message
    assert len(message) < 3000


def test_one_name_for_all_shards_is_refused_in_one_pass(tmp_path):
    shards = json.loads(shard_text()) * 20_000
    written(tmp_path, manifest_text(shards=json.dumps(shards)))
    assert "shards t.tar: named more than once" in refusal(lambda: Manifest.load(tmp_path))


def test_no_manifest_is_written_that_is_not_read(small, tmp_path, monkeypatch):
    _, manifest = small
    monkeypatch.setattr("data_pipelines.shards.manifest.MAX_MANIFEST_BYTES", 100)
    (tmp_path / "out").mkdir()
    with pytest.raises(DataError, match=r"manifest\.json: \d+ bytes, allowed are at most 100"):
        manifest.save(tmp_path / "out")
    assert not list((tmp_path / "out").iterdir())


def changed_index(root, manifest, **changes):
    """Change arrays of the index file, and the manifest with it."""
    shard = manifest.split("train").shards[0]
    path = root / f"{shard.name}.index"
    data = save(load(path.read_bytes()) | changes)
    path.write_bytes(data)
    index = IndexFile(bytes=len(data), sha256=hashlib.sha256(data).hexdigest())
    return shard.model_copy(update={"index": index})


@pytest.mark.parametrize("kind", ["the same range", "beyond the end", "one suffix", "members"])
def test_an_index_whose_members_are_not_those_of_a_tar(small, kind):
    """Such an index makes a shard of kilobytes be read as a sample of gigabytes."""
    root, manifest = small
    arrays = load((root / "train-000000.tar.index").read_bytes())
    changes = {
        "the same range": {"blocks": np.full_like(arrays["blocks"], arrays["blocks"][0])},
        "beyond the end": {"sizes": np.r_[arrays["sizes"][:-1], np.uint32(2**31)]},
        "one suffix": {"kinds": np.zeros_like(arrays["kinds"])},
        "members": {
            "first": np.array([0, 200_000], np.uint32),
            "key_ends": arrays["key_ends"][:1],
            "keys": arrays["keys"][: arrays["key_ends"][0]],
            "kinds": np.arange(200_000, dtype=np.uint32),
            "suffixes": np.frombuffer(b"/".join(b"%d" % n for n in range(200_000)), np.uint8),
            **{name: np.ones(200_000, np.uint32) for name in ("blocks", "sizes", "crc32")},
        },
    }[kind]
    shard = changed_index(root, manifest, **changes)
    message = refusal(lambda: ShardStore(root, [shard]).read(0, ["rgb.png"]))
    assert message == (
        f"{root}/train-000000.tar.index: damaged index: its members are not those of a tar file of "
        f"{shard.bytes} bytes"
    )


def test_keys_that_are_cut_within_a_character(small):
    root, manifest = small
    keys = "aé".encode()
    changes = {"keys": np.frombuffer(keys * 2, np.uint8)[:5]}
    changes["key_ends"] = np.array([2, 4, 5], np.uint32)
    shard = changed_index(root, manifest, **changes)
    with pytest.raises(DataError, match="damaged index"):
        ShardStore(root, [shard]).read(0, ["rgb.png"])
