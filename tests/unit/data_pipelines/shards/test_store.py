"""Members by global id, from tars of several programs, and the detection of damage."""

import hashlib
import io
import os
import pickle
import shutil
import tarfile

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipelines.errors import DataError
from data_pipelines.shards import store as store_module
from data_pipelines.shards.index_file import read_index
from data_pipelines.shards.manifest import Shard
from data_pipelines.shards.store import ShardStore

ALL = frozenset({"rgb.png", "normal.png", "depth.png", "attributes.json"})


def write_tar(path, entries, tar_format=tarfile.USTAR_FORMAT, samples=1):
    """A tar as another program writes it; entries are (name, bytes) or TarInfo."""
    with tarfile.open(path, "w", format=tar_format) as tar:
        for entry in entries:
            if isinstance(entry, tarfile.TarInfo):
                tar.addfile(entry)
            else:
                info = tarfile.TarInfo(entry[0])
                info.size = len(entry[1])
                tar.addfile(info, io.BytesIO(entry[1]))
    return store_of(path, samples)


def store_of(path, samples=1):
    """A store on a tar as it is, with a manifest of its size and hash."""
    data = path.read_bytes()
    sha256 = hashlib.sha256(data).hexdigest()
    shard = Shard(name=path.name, samples=samples, bytes=len(data), sha256=sha256)
    return ShardStore(path.parent, [shard])


def test_every_member_of_every_sample(shards, members_of):
    store = ShardStore(shards.root, shards.manifest.split("train").shards)
    assert len(store) == 37
    for number in [36, 0, 9, 10, *range(37)]:
        assert store.read(number, ALL) == (f"train{number}", members_of(number))
    store.close()


def test_only_members_asked_for_are_returned(shards, members_of):
    store = ShardStore(shards.root, shards.manifest.split("val").shards)
    assert store.read(3, ["rgb.png", "depth.png"])[1] == {"rgb.png": members_of(3)["rgb.png"]}


def test_ids_outside_the_split_are_refused(shards):
    store = ShardStore(shards.root, shards.manifest.split("val").shards)
    for sample_id in (-1, 11):
        with pytest.raises(IndexError, match=f"{sample_id} must be from 0 to 10"):
            store.read(sample_id, ALL)


def test_a_pickled_store_carries_no_descriptors(shards, members_of):
    store = ShardStore(shards.root, shards.manifest.split("val").shards)
    store.read(0, ALL)
    copy = pickle.loads(pickle.dumps(store))
    assert not copy._open
    store.close()
    assert copy.read(2, ALL)[1] == members_of(2)


def test_a_forked_process_reads_the_same(shards, members_of):
    store = ShardStore(shards.root, shards.manifest.split("train").shards)
    store.read(0, ALL)
    child = os.fork()
    if child == 0:
        good = all(store.read(n, ALL)[1] == members_of(n) for n in range(37))
        os._exit(0 if good else 1)
    assert all(store.read(n, ALL)[1] == members_of(n) for n in range(37))
    assert os.waitpid(child, 0)[1] == 0


def test_few_shards_stay_open(shards, members_of, monkeypatch):
    monkeypatch.setattr(store_module, "MAX_OPEN_SHARDS", 2)
    before = len(os.listdir("/proc/self/fd"))
    store = ShardStore(shards.root, shards.manifest.split("train").shards)
    for number, still_open in ((0, {0}), (10, {0, 1}), (1, {0, 1}), (20, {0, 2}), (30, {2, 3})):
        assert store.read(number, ALL)[1] == members_of(number)
        assert len(os.listdir("/proc/self/fd")) == before + len(still_open)
        assert set(store._open) == still_open
    del store
    assert len(os.listdir("/proc/self/fd")) == before


def test_more_indexes_than_shards_are_kept_up_to_their_bytes(shards, members_of, monkeypatch):
    monkeypatch.setattr(store_module, "MAX_OPEN_SHARDS", 1)
    split = shards.manifest.split("train")
    store = ShardStore(shards.root, split.shards)
    read = []
    monkeypatch.setattr(store_module, "read_index", lambda *a: read.append(a[0]) or read_index(*a))
    for number in (0, 10, 20, 0, 10, 20):
        assert store.read(number, ALL)[1] == members_of(number)
    assert len(read) == 3
    assert list(store._open) == [2]
    one = store._indexes[0].num_bytes
    assert store._index_bytes == sum(i.num_bytes for i in store._indexes.values())
    monkeypatch.setattr(store_module, "MAX_MEMORY_OF_INDEXES", int(2.5 * one))
    for number in (30, 0, 30, 10, 0):
        assert store.read(number, ALL)[1] == members_of(number)
    assert len(read) == 7
    assert store._index_bytes == sum(i.num_bytes for i in store._indexes.values()) <= 2.5 * one


@pytest.mark.parametrize(
    "tar_format", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT]
)
def test_tars_of_other_programs(tmp_path, tar_format):
    folder = tarfile.TarInfo("deep.folder/")
    folder.type = tarfile.DIRTYPE
    link = tarfile.TarInfo("deep.folder/link")
    link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
    long = "deep.folder/" + "x" * 90 + "/" + "y" * 60
    entries = [folder, (f"{long}.rgb.png", b"1" * 600), link, (f"{long}.a.json", b"2")]
    entries.append(("deep.folder/b.rgb.png", b""))
    store = write_tar(tmp_path / "t.tar", entries, tar_format, samples=2)
    assert store.read(0, ["rgb.png", "a.json"]) == (long, {"rgb.png": b"1" * 600, "a.json": b"2"})
    assert store.read(1, ["rgb.png", "a.json"]) == ("deep.folder/b", {"rgb.png": b""})


@pytest.mark.parametrize("tar_format", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_names_beyond_ustar(tmp_path, tar_format):
    key = "é" * 150
    link = tarfile.TarInfo("link" * 50)
    link.type, link.linkname = tarfile.SYMTYPE, "target" * 50
    entries = [(f"{key}.rgb.png", b"1"), (f"{key}.a.json", b"2"), link, ("short.a.json", b"3")]
    store = write_tar(tmp_path / "t.tar", entries, tar_format, samples=2)
    assert store.read(0, ["a.json"]) == (key, {"a.json": b"2"})
    assert store.read(1, ["a.json"]) == ("short", {"a.json": b"3"})


def test_global_pax_headers_are_skipped(tmp_path):
    path = tmp_path / "t.tar"
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT, pax_headers={"comment": "x"}) as tar:
        info = tarfile.TarInfo("k.a.json")
        info.size = 1
        tar.addfile(info, io.BytesIO(b"1"))
    assert store_of(path).read(0, ["a.json"]) == ("k", {"a.json": b"1"})


@pytest.fixture
def damaged(shards, tmp_path):
    """A copy of the train split without its indexes, to be damaged, and a store on it."""
    plain = [
        shard.model_copy(update={"index": None}) for shard in shards.manifest.split("train").shards
    ]
    for shard in plain:
        shutil.copy(shards.root / shard.name, tmp_path)
    return tmp_path / "train-000001.tar", ShardStore(tmp_path, plain)


def refused(store, number=10):
    with pytest.raises(DataError) as caught:
        store.read(number, ALL)
    return str(caught.value)


def test_a_missing_shard(damaged):
    path, store = damaged
    path.unlink()
    assert refused(store) == f"{path}: missing shard"
    assert store.read(9, ALL)[0] == "train9"


def test_a_truncated_shard(damaged):
    path, store = damaged
    size = path.stat().st_size
    os.truncate(path, size - 512)
    assert refused(store) == f"{path}: truncated shard: {size - 512} bytes, manifest says {size}"
    os.truncate(path, size + 512)
    assert refused(store) == f"{path}: wrong shard: {size + 512} bytes, manifest says {size}"


def test_a_cut_at_a_header_boundary_is_detected_though_the_size_agrees(damaged):
    path, _ = damaged
    with tarfile.open(path) as tar:
        member = tar.getmembers()[5]
    os.truncate(path, member.offset)
    message = refused(store_of(path, 2), 0)
    assert message == (
        f"{path}: truncated shard: no end-of-archive mark before byte {member.offset}"
    )


def test_a_cut_inside_a_member(damaged):
    path, _ = damaged
    with tarfile.open(path) as tar:
        member = tar.getmembers()[5]
    os.truncate(path, member.offset_data + 10)
    message = refused(store_of(path, 2), 0)
    assert f"truncated shard: the member at byte {member.offset} ends at" in message


def test_half_an_end_mark(tmp_path):
    store = write_tar(tmp_path / "t.tar", [("k.a.json", b"1")])
    os.truncate(tmp_path / "t.tar", 1024 + 512)
    assert "no end-of-archive mark at byte 1024" in refused(store_of(tmp_path / "t.tar"), 0)
    assert "truncated shard: 1536 bytes" in refused(store, 0)


def test_a_hole_of_zeros_ends_the_archive_early(damaged):
    path, store = damaged
    with tarfile.open(path) as tar:
        offset = tar.getmembers()[20].offset
    with open(path, "r+b") as file:
        file.seek(offset)
        file.write(bytes(1024))
    assert f"{path}: another or a damaged shard: sha256 " in refused(store)
    assert f"{path}: 6 samples, manifest says 10" in refused(store_of(path, 10), 0)


@pytest.mark.parametrize(("place", "value"), [(0, b"X"), (124, b"7"), (130, b"z"), (150, b"!")])
def test_a_damaged_header(damaged, place, value):
    path, store = damaged
    with tarfile.open(path) as tar:
        offset = tar.getmembers()[7].offset
    with open(path, "r+b") as file:
        file.seek(offset + place)
        file.write(value)
    assert f"{path}: another or a damaged shard: sha256 " in refused(store)
    assert f"{path}: damaged header at byte {offset}: " in refused(store_of(path, 10), 0)


@settings(max_examples=100, deadline=None)
@given(data=st.data())
def test_damage_to_a_header_is_detected(tmp_path_factory, data):
    path = tmp_path_factory.mktemp("t") / "t.tar"
    write_tar(path, [("k.a.json", b"1"), ("k.b.json", b"2"), ("l.a.json", b"3")])
    place = 1024 + data.draw(st.integers(0, 511))
    content = bytearray(path.read_bytes())
    content[place] ^= data.draw(st.integers(1, 255))
    path.write_bytes(content)
    try:
        key, members = store_of(path, 2).read(0, ["a.json", "b.json"])
    except DataError as error:
        assert str(error).startswith(f"{path}: ")
    else:  # only the spelling of the checksum itself, such as a space for a zero, may differ
        assert 1024 + 148 <= place < 1024 + 156
        assert (key, members) == ("k", {"a.json": b"1", "b.json": b"2"})


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["a.x.json", "b.x.json", "a.y.json"], "sample 'a' comes twice"),
        (["a.x.json", "a.x.json"], "member 'a.x.json' comes twice"),
        (["README"], "member 'README' is not named KEY.SUFFIX"),
        (["folder/.hidden"], "member 'folder/.hidden' is not named KEY.SUFFIX"),
        (["a.x.json", "b.x.json"], "2 samples, manifest says 1"),
    ],
)
def test_members_that_make_no_samples(tmp_path, names, expected):
    store = write_tar(tmp_path / "t.tar", [(name, b"1") for name in names])
    assert refused(store, 0) == f"{tmp_path / 't.tar'}: {expected}"


def test_a_damaged_pax_record(tmp_path):
    path = tmp_path / "t.tar"
    write_tar(path, [("é.a.json", b"1")], tarfile.PAX_FORMAT)
    content = path.read_bytes()
    start = content.index(b" path=")
    path.write_bytes(content[: start - 2] + b"99" + content[start:])
    assert "damaged pax header: record length b'99'" in refused(store_of(path), 0)


def test_a_name_that_is_not_text(tmp_path):
    path = tmp_path / "t.tar"
    write_tar(path, [("k\udcff.a.json", b"1")])
    assert "is not UTF-8" in refused(store_of(path), 0)


def test_a_shard_that_shrinks_while_it_is_read(damaged):
    path, store = damaged
    store.read(10, ALL)
    os.truncate(path, 512)
    assert f"{path}: truncated shard: 0 of " in refused(store, 19)
