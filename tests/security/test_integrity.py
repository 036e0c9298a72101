"""Files that are exchanged or damaged after they were checked, and files named from outside."""

import hashlib
import logging
import os
import shutil
from pathlib import Path

import datasets
import numpy as np
import pytest
from pyarrow import parquet

from data_pipelines.convert.dataset_files import DatasetFiles
from data_pipelines.convert.huggingface import write_huggingface
from data_pipelines.convert.mapping import FieldMap
from data_pipelines.convert.options import ConversionOptions
from data_pipelines.decode import bounds
from data_pipelines.decode.codecs import encode_png
from data_pipelines.errors import DataError
from data_pipelines.shards import built_index
from data_pipelines.shards.cache import ShardCache
from data_pipelines.shards.manifest import Field, Manifest
from data_pipelines.shards.sources import LocalFile, open_folder
from data_pipelines.shards.store import ShardStore
from data_pipelines.shards.writer import ShardWriter
from tests.processes import run_together
from tests.servers import FileServer

FIELDS = {
    "rgb": Field(member="rgb.png", kind="image", channels=3),
    "hat": Field(member="a.json", key="hat", kind="binary"),
}
MEMBERS = ["rgb.png", "a.json"]


def write(root, hat):
    """Shards of four samples, of which one member differs with `hat`; sizes are equal."""
    with ShardWriter(root, "train") as writer:
        for number in range(4):
            picture = encode_png(np.full((4, 4, 3), number, np.uint8))
            writer.write(f"s{number}", {"rgb.png": picture, "a.json": b'{"hat":%d}' % hat})
    split = writer.split({"rgb": 4, "hat": 4})
    Manifest(dataset="small", fields=FIELDS, splits={"train": split}).save(root)
    return root / "train-000000.tar"


@pytest.fixture(autouse=True)
def kept(monkeypatch, tmp_path) -> Path:
    """The folder of kept indexes."""
    monkeypatch.setenv("DMTG_CACHE_DIR", str(tmp_path / "cache"))
    return tmp_path / "cache" / "indexes"


@pytest.fixture
def plain(tmp_path):
    """A shard without an index file, another one of its size, and the manifest's entry."""
    path, other = write(tmp_path / "data", 0), write(tmp_path / "other", 1)
    for folder in (path.parent, other.parent):
        (folder / "train-000000.tar.index").unlink()
    assert path.stat().st_size == other.stat().st_size
    shard = Manifest.load(path.parent).split("train").shards[0]
    return path, other, shard.model_copy(update={"index": None})


def read(path, shard, number=0):
    return ShardStore(path.parent, [shard]).read(number, MEMBERS)


def test_an_exchanged_shard_of_equal_size_is_refused(plain):
    path, other, shard = plain
    shutil.copy(other, path)
    with pytest.raises(DataError) as caught:
        read(path, shard)
    message = str(caught.value)
    assert message.startswith(f"{path}: another or a damaged shard: sha256 ")
    assert message.endswith(f"manifest says {shard.sha256}")


@pytest.mark.parametrize("keep_times", [False, True])
def test_a_shard_that_is_exchanged_later_is_refused(plain, keep_times):
    """Also with the time and the name of the first one: members are compared, not times."""
    path, other, shard = plain
    assert read(path, shard)[1]["a.json"] == b'{"hat":0}'
    times = path.stat()
    path.write_bytes(other.read_bytes())
    if keep_times:
        os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    with pytest.raises(DataError, match=rf"{path}: member s0\.a\.json: damaged: crc32 \w+, recor"):
        read(path, shard)


@pytest.fixture
def bytes_read(monkeypatch):
    """The bytes that this process reads of local files."""
    counted = []
    read_file = LocalFile.read

    def counting(self, offset, size):
        counted.append(size)
        return read_file(self, offset, size)

    monkeypatch.setattr(LocalFile, "read", counting)
    return counted


def test_a_shard_is_hashed_once_and_its_folder_left_alone(plain, bytes_read, kept):
    path, _, shard = plain
    path.parent.chmod(0o555)
    before = sorted(path.parent.iterdir())
    assert read(path, shard)[0] == "s0"
    first = sum(bytes_read)
    assert shard.bytes <= first < shard.bytes + 2048  # all of it once, and a sample
    assert [file.name for file in kept.glob("*.index")] == [f"{shard.sha256}.index"]
    bytes_read.clear()
    for number in range(4):
        assert read(path, shard, number)[0] == f"s{number}"
    assert sum(bytes_read) < shard.bytes
    assert sorted(path.parent.iterdir()) == before


def hash_together(path, shard, log, together):
    build = built_index._build

    def logged(*arguments):
        with open(log, "ab") as lines:
            lines.write(b"hashed\n")
        return build(*arguments)

    built_index._build = logged
    together.wait()
    read(path, shard)


def test_processes_that_start_together_hash_a_shard_once(plain, tmp_path):
    path, _, shard = plain
    run_together(hash_together, path, shard, tmp_path / "log")
    assert (tmp_path / "log").read_bytes() == b"hashed\n"


@pytest.mark.parametrize("damage", [b"", b"x" * 100, None])
def test_a_damaged_kept_index_is_built_again(plain, kept, damage, caplog):
    path, _, shard = plain
    expected = read(path, shard)
    file = kept / f"{shard.sha256}.index"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(bytes(content) if damage is None else damage)
    assert read(path, shard) == expected
    assert f"{file}: damaged index: sha256 " in caplog.text and "built again" in caplog.text
    caplog.clear()
    assert read(path, shard) == expected
    assert not caplog.text


def test_a_damaged_header_is_damage_of_the_shard(plain):
    """The rest is hashed, too: the manifest decides whether it is the shard of the dataset."""
    path, _, shard = plain
    content = bytearray(path.read_bytes())
    content[0] ^= 1
    path.write_bytes(content)
    with pytest.raises(DataError, match=f"{path}: another or a damaged shard: sha256 "):
        read(path, shard)
    changed = shard.model_copy(update={"sha256": hashlib.sha256(content).hexdigest()})
    with pytest.raises(DataError, match=f"{path}: damaged header at byte 0"):
        read(path, changed)


def test_the_progress_of_a_slow_shard_is_told(plain, monkeypatch, caplog):
    path, _, shard = plain
    monkeypatch.setattr(built_index, "_REPORT_SECONDS", -1.0)
    monkeypatch.setattr(built_index, "_BLOCK_BYTES", 500)  # members and headers span blocks
    read(path, shard)
    assert f"{path}: 500 of {shard.bytes} bytes are read" in caplog.text


def test_kept_indexes_are_bounded(tmp_path, kept, monkeypatch):
    shards = []
    for number in range(4):
        path = write(tmp_path / f"data{number}", number)
        entry = Manifest.load(path.parent).split("train").shards[0]
        shards.append((path, entry.model_copy(update={"index": None})))
    read(*shards[0])
    [first] = kept.glob("*.index")
    monkeypatch.setattr(built_index, "MAX_KEPT_BYTES", int(2.5 * first.stat().st_size))
    for number in (1, 0, 2, 0, 3):
        read(*shards[number])
    names = {f"{shards[number][1].sha256}.index" for number in (0, 3)}
    assert {file.name for file in kept.glob("*.index")} == names
    assert all(len(file.stem) == 2 or file.stem == "room" for file in kept.glob("*.lock"))


def test_without_a_place_for_the_index_it_is_built_and_used(plain, tmp_path, monkeypatch, caplog):
    path, other, shard = plain
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("DMTG_CACHE_DIR", str(tmp_path / "file"))
    assert read(path, shard)[0] == "s0"
    assert "the index is not kept, each process builds it" in caplog.text
    shutil.copy(other, path)
    with pytest.raises(DataError, match="another or a damaged shard"):
        read(path, shard)


def test_a_shard_with_an_index_file_is_not_hashed(tmp_path, kept, caplog):
    path = write(tmp_path / "data", 0)
    with caplog.at_level(logging.INFO):
        read(path, Manifest.load(path.parent).split("train").shards[0])
    assert not caplog.text and not kept.exists()


@pytest.fixture
def remote(tmp_path):
    """A served folder of shards, a cache, and the folder as read through it."""
    write(tmp_path / "data", 0)
    cache = tmp_path / "copies"
    with FileServer(tmp_path / "data") as server:
        folder = open_folder(server.url, ShardCache(cache, 10**7), retry_seconds=0.0)
        yield server, cache, folder, Manifest.load(folder).split("train").shards[0]
        server.shutdown()


def damage_copies(cache, size):
    """Change each byte of the copies of a size, as a damaged disk would."""
    for copy in cache.glob("*.copy"):
        if copy.stat().st_size == size:
            copy.write_bytes(bytes(byte ^ 255 for byte in copy.read_bytes()))


@pytest.mark.parametrize("what", ["shard", "index", "both", "shard without an index"])
def test_a_damaged_copy_is_fetched_again_once(remote, what):
    server, cache, folder, shard = remote
    if what == "shard without an index":
        shard = shard.model_copy(update={"index": None})
    expected = ShardStore(folder, [shard]).read(1, MEMBERS)
    if what in ("index", "both"):
        damage_copies(cache, shard.index.bytes)
    if what != "index":
        damage_copies(cache, shard.bytes)
    server.asked.clear()
    assert ShardStore(folder, [shard]).read(1, MEMBERS) == expected
    assert len(server.asked) == (2 if what == "both" else 1)
    assert ShardStore(folder, [shard]).read(1, MEMBERS) == expected
    assert len(server.asked) == (2 if what == "both" else 1)


@pytest.mark.parametrize("bound", ["MAX_MEMBER_BYTES", "MAX_SAMPLE_BYTES"])
def test_an_intact_copy_over_a_bound_is_kept(remote, monkeypatch, bound):
    server, cache, folder, shard = remote
    store = ShardStore(folder, [shard])
    store.read(0, MEMBERS)
    monkeypatch.setattr(bounds, bound, 10)
    server.asked.clear()
    copies = sorted(cache.glob("*.copy"))
    with pytest.raises(DataError, match=r"sample s0: .* bytes, allowed are at most 10$"):
        store.read(0, MEMBERS)
    assert sorted(cache.glob("*.copy")) == copies and not server.asked


def test_a_copy_that_is_damaged_twice_is_named(remote, monkeypatch):
    server, cache, folder, shard = remote
    store = ShardStore(folder, [shard])
    store.read(0, MEMBERS)
    damage_copies(cache, shard.bytes)
    copied = folder.open

    def damaged_again(file):
        opened = copied(file)
        if file.name == shard.name:
            damage_copies(cache, shard.bytes)
        return opened

    monkeypatch.setattr(folder, "open", damaged_again)
    server.asked.clear()
    for _ in range(3):
        with pytest.raises(DataError) as caught:
            store.read(0, MEMBERS)
    message = str(caught.value)
    [copy] = [path for path in cache.glob("*.copy") if path.stat().st_size == shard.bytes]
    assert message.startswith(f"{server.url}/train-000000.tar (copy {copy}): member s0.")
    assert "damaged: crc32" in message
    assert server.asked == ["/train-000000.tar"]


def test_a_copy_that_another_process_has_replaced_is_kept(remote):
    server, cache, folder, shard = remote
    first, second = ShardStore(folder, [shard]), ShardStore(folder, [shard])
    expected = first.read(0, MEMBERS)
    second.read(0, MEMBERS)
    damage_copies(cache, shard.bytes)
    server.asked.clear()
    assert first.read(0, MEMBERS) == second.read(0, MEMBERS) == expected
    assert server.asked == ["/train-000000.tar"]


PICTURE = encode_png(np.full((4, 4, 3), 7, np.uint8))
MAP = FieldMap(image="rgb", fields={"rgb": {"kind": "image", "column": "photo"}})


def converted(source, out, rows):
    """Convert a parquet file of rows that name pictures."""
    features = datasets.Features({"photo": datasets.Image()})
    table = datasets.Dataset.from_list(
        [{"photo": {"bytes": None, "path": str(path)}} for path in rows], features=features
    )
    parquet.write_table(table.data.table, source / "train.parquet")
    return write_huggingface(
        str(source), out, MAP, ConversionOptions(progress=False, portable=True, workers=1)
    )


@pytest.fixture
def source(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "hf"))
    folder = tmp_path / "source"
    (folder / "images").mkdir(parents=True)
    (folder / "images" / "a.png").write_bytes(PICTURE)
    return folder


@pytest.mark.parametrize("kind", ["relative", "absolute", "a link within"])
def test_rows_name_files_of_the_dataset(source, tmp_path, kind):
    (source / "link.png").symlink_to("images/a.png")
    names = {
        "relative": "images/a.png",
        "absolute": source / "images/a.png",
        "a link within": "link.png",
    }
    manifest = converted(source, tmp_path / "out", [names[kind]])
    assert manifest.split("train").num_samples == 1


@pytest.fixture
def snapshot(tmp_path, monkeypatch):
    """A dataset in the cache of the hub, whose files are links to blobs."""
    repository = tmp_path / "hub" / "datasets--someone--rooms"
    folder = repository / "snapshots" / "0123abc"
    (folder / "images").mkdir(parents=True)
    (repository / "blobs").mkdir()
    rows = datasets.Dataset.from_list([{"photo": {"bytes": None, "path": "images/a.png"}}])
    parquet.write_table(rows.data.table, repository / "blobs" / "rows")
    (repository / "blobs" / "a").write_bytes(PICTURE)
    (folder / "train.parquet").symlink_to("../../blobs/rows")
    (folder / "images" / "a.png").symlink_to("../../../blobs/a")
    monkeypatch.chdir(folder)
    return folder


@pytest.mark.parametrize("name", ["{0}", "{0}/train.parquet", ".", "train.parquet"])
def test_a_snapshot_of_the_hub_is_read(snapshot, name):
    files = DatasetFiles(name.format(snapshot))
    for path in ("images/a.png", f"{snapshot}/images/a.png"):
        assert files.read(path) == PICTURE
    (snapshot.parents[1] / "refs").mkdir()
    (snapshot.parents[1] / "refs" / "main").write_text("0123abc")
    (snapshot / "images" / "b.png").symlink_to("../../../refs/main")
    for path in ("images/b.png", "../../refs/main", f"{snapshot.parents[1]}/refs/main"):
        with pytest.raises(DataError, match="a row names the file"):
            files.read(path)


@pytest.mark.parametrize(
    "name",
    [
        "/etc/hostname",
        "{outside}",
        "../secret.png",
        "images/../../secret.png",
        "{source}/images/../../secret.png",
        "link.png",
        "folder/secret.png",
        "file://{outside}",
        "https://127.0.0.1:9/a.png",
        "zip://a.png::https://127.0.0.1:9/a.zip",
        "zip://a.png::{outside}",
        "simplecache::{source}/images/a.png",
        "zip://a::zip://b::{source}/images/a.png",
        "hf://datasets/someone/else/a.png",
    ],
)
def test_rows_that_name_other_files_are_refused(source, tmp_path, name):
    outside = tmp_path / "secret.png"
    outside.write_bytes(PICTURE)
    (source / "link.png").symlink_to(outside)
    (source / "folder").symlink_to(tmp_path)
    named = name.format(outside=outside, source=source)
    with pytest.raises(DataError) as caught:
        converted(source, tmp_path / "out", ["images/a.png", named])
    message = str(caught.value)
    assert f"{source}: a row names the file " in message
    assert repr(named)[:150] in message
    assert message.endswith("allowed are files of the dataset itself")
    assert not list((tmp_path / "out").glob("*.tar"))
