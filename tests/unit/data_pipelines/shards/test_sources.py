"""Shards in a local folder, on HTTP and S3 servers, with and without a cache."""

import os
import pickle
import shutil
import time

import pytest
import torch

from data_pipelines.errors import DataError, SourceError
from data_pipelines.reading.loader import train_loader
from data_pipelines.shards import remote
from data_pipelines.shards.cache import ShardCache
from data_pipelines.shards.manifest import Manifest, check_shards
from data_pipelines.shards.sources import LocalFolder, RemoteFolder, StoredFile, open_folder
from data_pipelines.shards.store import ShardStore
from data_pipelines.transforms import Geometry

ALL = frozenset({"rgb.png", "normal.png", "depth.png", "attributes.json"})


def batches(location, shards, workers=0):
    loader = train_loader(
        location,
        Manifest.load(location),
        shards.requests,
        Geometry((6, 6), crop=0.5, flip=True),
        seed=3,
        global_batch=8,
        num_steps=6,
        workers=workers,
    )
    return list(loader)


def assert_same(actual, expected):
    assert [batch.keys for batch in actual] == [batch.keys for batch in expected]
    for one, other in zip(actual, expected, strict=True):
        assert torch.equal(one.images, other.images)
        assert torch.equal(one.scalars, other.scalars)
        assert torch.equal(one.valid_rows, other.valid_rows)


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("cached", [False, True])
def test_http_gives_the_samples_of_the_folder(shards, served, tmp_path, cached, workers):
    cache = ShardCache(tmp_path, 10**7) if cached else None
    folder = open_folder(served.url, cache)
    check_shards(folder, shards.manifest.split("train"))
    assert_same(batches(folder, shards, workers), batches(shards.root, shards))
    tars = [path for path in served.asked if path.endswith(".tar")]
    assert len(tars) == 4 if cached else len(tars) >= 6 * 8


def test_the_cache_is_filled_once(shards, served, tmp_path):
    for _ in range(2):
        folder = open_folder(served.url, ShardCache(tmp_path, 10**7))
        store = ShardStore(folder, shards.manifest.split("train").shards)
        assert store.read(15, ALL)[0] == "train15"
        assert store.read(0, ALL)[0] == "train0"
    assert sorted(served.asked) == sorted(
        f"/train-00000{n}.tar{end}" for n in (0, 1) for end in ("", ".index")
    )


def test_one_request_fetches_the_members_of_a_sample(shards, served):
    store = ShardStore(served.url, shards.manifest.split("train").shards)
    store.read(0, ALL)
    assert served.asked == ["/train-000000.tar.index", "/train-000000.tar"]


def test_a_store_on_a_url_can_be_pickled(shards, served, members_of):
    store = ShardStore(served.url, shards.manifest.split("val").shards)
    store.read(0, ALL)
    assert pickle.loads(pickle.dumps(store)).read(3, ALL)[1] == members_of(3)


@pytest.mark.usefixtures("patient")
@pytest.mark.parametrize("knob", ["refuse", "cut"])
@pytest.mark.parametrize("cached", [False, True])
def test_a_source_that_fails_for_a_while(
    shards, served, tmp_path, caplog, members_of, knob, cached
):
    cache = ShardCache(tmp_path, 10**7) if cached else None
    store = ShardStore(open_folder(served.url, cache), shards.manifest.split("train").shards)
    store.read(0, ALL)
    setattr(served, knob, 5)
    assert store.read(12, ALL)[1] == members_of(12)
    warned = [r.getMessage() for r in caplog.records if "trying again" in r.getMessage()]
    assert len(warned) == 5
    assert served.url in warned[0]


@pytest.mark.usefixtures("patient")
@pytest.mark.parametrize("knob", ["refuse", "cut"])
@pytest.mark.parametrize("cached", [False, True])
def test_a_source_that_fails_for_good(shards, served, tmp_path, knob, cached):
    cache = ShardCache(tmp_path, 10**7) if cached else None
    folder = open_folder(served.url, cache, retry_seconds=0.2)
    store = ShardStore(folder, shards.manifest.split("train").shards)
    setattr(served, knob, 10**6)
    message = r"train-000001\.tar.*: failed \d+ times in 0\.2 s, at last with "
    with pytest.raises(SourceError, match=message):
        store.read(12, ALL)
    assert not list(tmp_path.glob("*.copy")) + list(tmp_path.glob("*.partial"))


@pytest.mark.usefixtures("patient")
def test_a_source_that_hangs(shards, served, monkeypatch):
    monkeypatch.setattr(remote, "TIMEOUT", 0.05)
    folder = open_folder(served.url, retry_seconds=0.1)
    store = ShardStore(folder, shards.manifest.split("train").shards)
    message = r"failed \d+ times in 0\.1 s, at last with FSTimeoutError"
    with served.lock, pytest.raises(SourceError, match=message):
        store.read(0, ALL)


@pytest.mark.usefixtures("patient")
def test_a_stopped_server(served):
    served.shutdown()
    served.server_close()
    message = r"manifest\.json: failed \d+ times in 0\.1 s, at last with Client"
    with pytest.raises(SourceError, match=message):
        Manifest.load(open_folder(served.url, retry_seconds=0.1))


class Clock:
    """A clock that only sleeping and `advance` move forward."""

    def __init__(self, monkeypatch):
        self.now = 0.0
        self.waits = []
        monkeypatch.setattr(time, "monotonic", lambda: self.now)
        monkeypatch.setattr(time, "sleep", self.sleep)

    def sleep(self, seconds):
        self.waits.append(seconds)
        self.now += seconds


def test_the_waits_grow_up_to_a_limit_and_end_in_time(monkeypatch, caplog):
    clock, calls = Clock(monkeypatch), []

    def call():
        calls.append(clock.now)
        if len(calls) == 1:
            clock.now += 50.0  # the time of the first attempt does not count
        raise ConnectionError("refused")

    with pytest.raises(SourceError) as caught:
        remote._retried("s3://b/x", call, 130.0)
    assert clock.waits == [0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 30.0, 30.0, 30.0]
    assert str(caught.value) == (
        "s3://b/x: failed 10 times in 130 s, at last with ConnectionError: refused"
    )
    assert isinstance(caught.value.__cause__, ConnectionError)
    assert [record.getMessage() for record in caplog.records][:2] == [
        "s3://b/x: ConnectionError: refused; trying again in 0.5 s",
        "s3://b/x: ConnectionError: refused; trying again in 1.0 s",
    ]


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (FileNotFoundError(), DataError),
        (IsADirectoryError(), DataError),
        (DataError("damaged"), DataError),
        (KeyboardInterrupt(), KeyboardInterrupt),
    ],
)
def test_errors_that_no_retry_can_help_are_raised_at_once(monkeypatch, error, expected):
    clock = Clock(monkeypatch)

    def call():
        raise error

    with pytest.raises(expected):
        remote._retried("s3://b/x", call, 130.0)
    assert clock.waits == []


def test_no_retry_time_means_one_attempt(monkeypatch):
    clock, calls = Clock(monkeypatch), []

    def call():
        calls.append(0)
        raise ConnectionError

    with pytest.raises(SourceError, match=r"failed 1 times in 0 s, at last with ConnectionError$"):
        remote._retried("s3://b/x", call, 0.0)
    assert (len(calls), clock.waits) == (1, [])


def test_files_that_a_server_does_not_have(shards, served, tmp_path):
    served.root = tmp_path
    with pytest.raises(DataError, match=r"/manifest\.json: missing; a folder of shards has a"):
        Manifest.load(served.url)
    store = ShardStore(served.url, shards.manifest.split("val").shards)
    with pytest.raises(DataError, match=r"val-000000\.tar\.index: missing"):
        store.read(0, ALL)


def test_a_server_without_ranges(shards, served):
    served.ranges = False
    store = ShardStore(served.url, shards.manifest.split("val").shards)
    with pytest.raises(DataError, match="the server does not give ranges of bytes, it sent all"):
        store.read(0, ALL)


def test_other_shards_than_the_manifests_are_detected(shards, served, tmp_path):
    shutil.copytree(shards.root, tmp_path / "other")
    shutil.copy(tmp_path / "other/train-000001.tar", tmp_path / "other/train-000000.tar")
    served.root = tmp_path / "other"
    split = shards.manifest.split("train")
    with pytest.raises(DataError, match=r"train-000000\.tar: member train\d\.\S+: damaged: crc32"):
        for number in range(10):
            ShardStore(served.url, split.shards).read(number, ALL)
    cached = open_folder(served.url, ShardCache(tmp_path / "cache", 10**7))
    with pytest.raises(DataError, match=r"train-000000\.tar: sha256 \w+ came, manifest says \w+"):
        ShardStore(cached, split.shards).read(0, ALL)


def test_shards_without_index_need_a_cache(shards, served, tmp_path, members_of):
    plain = [s.model_copy(update={"index": None}) for s in shards.manifest.split("val").shards]
    with pytest.raises(DataError, match=r"val-000000\.tar: the shard has no index; set data\.cac"):
        ShardStore(served.url, plain).read(0, ALL)
    cached = open_folder(served.url, ShardCache(tmp_path, 10**7))
    assert ShardStore(cached, plain).read(3, ALL)[1] == members_of(3)


@pytest.mark.parametrize("url", ["pipe:cat /etc/passwd", " PIPE:curl http://x"])
def test_pipes_are_refused_by_name(url):
    with pytest.raises(DataError, match="pipe: would run a command; allowed are paths and URLs"):
        open_folder(url)


def test_unknown_protocols_are_named():
    with pytest.raises(DataError, match=r"nosuch://x: cannot be opened: Protocol not known"):
        open_folder("nosuch://x")


def test_paths_stay_on_this_machine(tmp_path):
    assert isinstance(open_folder(tmp_path), LocalFolder)
    assert isinstance(open_folder(str(tmp_path), ShardCache(tmp_path, 1)), LocalFolder)
    folder = open_folder(tmp_path)
    assert open_folder(folder) is folder
    with pytest.raises(DataError, match="cannot be listed"):
        open_folder(tmp_path / "none").sizes()


def test_what_this_machine_cannot_open_is_named(tmp_path):
    folder = tmp_path / "a.tar"
    folder.mkdir()
    file = StoredFile("a.tar", folder.stat().st_size, "0" * 64)
    with pytest.raises(DataError, match=r"a\.tar: cannot be read: Is a directory"):
        open_folder(tmp_path).open(file).read(0, 1)
    with pytest.raises(DataError, match=r"x: cannot be opened: Not a directory"):
        open_folder(__file__).open(StoredFile("x", 1, "0" * 64))


def test_a_url_of_files_is_listed_and_compared(shards, tmp_path, members_of):
    shutil.copytree(shards.root, tmp_path, dirs_exist_ok=True)
    split = shards.manifest.split("train")
    folder = RemoteFolder(f"file://{tmp_path}")
    check_shards(folder, split)
    assert ShardStore(folder, split.shards).read(11, ALL)[1] == members_of(11)
    size = split.shards[1].bytes
    os.truncate(tmp_path / "train-000001.tar", 512)
    (tmp_path / "train-000002.tar.index").unlink()
    with pytest.raises(DataError) as caught:
        check_shards(folder, split)
    assert str(caught.value).splitlines() == [
        f"file://{tmp_path}/train-000001.tar: truncated shard: 512 bytes, manifest says {size}",
        f"file://{tmp_path}/train-000002.tar.index: missing index",
    ]


@pytest.fixture(scope="module")
def bucket(shards):
    """The small shards in a bucket of a real S3 server."""
    moto = pytest.importorskip("moto.server", reason="the S3 server is moto's")
    pytest.importorskip("s3fs", reason="fsspec speaks S3 through s3fs")
    import fsspec

    server = moto.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    keys = {
        "AWS_ACCESS_KEY_ID": "key",
        "AWS_SECRET_ACCESS_KEY": "secret",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_ENDPOINT_URL": f"http://{host}:{port}",
    }
    with pytest.MonkeyPatch.context() as patch:
        for name, value in keys.items():
            patch.setenv(name, value)
        system = fsspec.filesystem("s3", use_listings_cache=False)
        system.mkdir("shards")
        for path in sorted(shards.root.iterdir()):
            system.put_file(str(path), f"shards/small/{path.name}")
        yield system
    server.stop()


@pytest.mark.usefixtures("bucket")
@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("cached", [False, True])
def test_s3_gives_the_samples_of_the_folder(shards, tmp_path, cached, workers):
    cache = ShardCache(tmp_path, 10**7) if cached else None
    folder = open_folder("s3://shards/small", cache)
    check_shards(folder, shards.manifest.split("train"))
    assert_same(batches(folder, shards, workers), batches(shards.root, shards))


def test_s3_listing_finds_what_is_missing(shards, bucket):
    bucket.copy("shards/small", "shards/other", recursive=True)
    bucket.rm_file("shards/other/train-000002.tar")
    bucket.pipe_file("shards/other/train-000000.tar.index", b"x")
    with pytest.raises(DataError) as caught:
        check_shards("s3://shards/other", shards.manifest.split("train"))
    first, second = str(caught.value).splitlines()
    assert first.startswith("s3://shards/other/train-000000.tar.index: truncated index: 1 bytes")
    assert second == "s3://shards/other/train-000002.tar: missing shard"
    with pytest.raises(DataError, match=r"s3://shards/nothing: missing"):
        check_shards("s3://shards/nothing", shards.manifest.split("train"))
