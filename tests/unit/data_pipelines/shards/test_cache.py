"""Local copies of remote files: content, eviction, concurrent processes."""

import hashlib
import os
from multiprocessing import get_context
from pathlib import Path

import pytest

from data_pipelines.errors import DataError
from data_pipelines.shards.cache import ShardCache
from tests.processes import run_forked, run_together


class Files:
    """Remote files; `got` counts how often each was copied."""

    def __init__(self, cache: ShardCache) -> None:
        self.cache = cache
        self.got: list[str] = []

    def open(self, url: str, content: bytes) -> Path:
        def copy(file):
            self.got.append(url)
            file.write(content)

        digest = hashlib.sha256(content).hexdigest()
        path, descriptor = self.cache.open(url, len(content), digest, copy)
        try:
            assert os.pread(descriptor, 10**6, 0) == content
        finally:
            os.close(descriptor)
        return path


@pytest.fixture
def files(tmp_path):
    return Files(ShardCache(tmp_path / "cache", 1000))


def copies(files):
    return sorted(path for path in files.cache.folder.iterdir() if path.suffix == ".copy")


def test_a_file_is_copied_once(files):
    assert files.open("s3://a/x.tar", b"1" * 100) == files.open("s3://a/x.tar", b"1" * 100)
    assert files.got == ["s3://a/x.tar"]
    assert Files(ShardCache(files.cache.folder, 1000)).open("s3://a/x.tar", b"1" * 100)


def test_equal_names_elsewhere_and_new_content_are_other_files(files):
    """Also equal content of another URL: each URL has a copy of its own."""
    places = {
        files.open("s3://a/train/000.tar", b"1" * 10),
        files.open("s3://a/val/000.tar", b"2" * 10),
        files.open("s3://b/val/000.tar", b"2" * 10),
        files.open("s3://a/train/000.tar", b"3" * 10),
    }
    assert len(places) == 4
    assert files.open("s3://a/train/000.tar", b"1" * 10) in places


def test_the_least_recently_used_file_is_evicted(files):
    first, second = files.open("u://1", b"1" * 400), files.open("u://2", b"2" * 400)
    for age, path in enumerate([second, first]):  # the first one was used before the second
        os.utime(path, ns=(10**9 - age, 10**9 - age))
    files.open("u://1", b"1" * 400)  # used again, so that the second is the oldest
    third = files.open("u://3", b"3" * 400)
    assert copies(files) == sorted([first, third])
    assert not second.exists()
    files.open("u://4", b"4" * 700)
    assert sum(path.stat().st_size for path in copies(files)) <= 1000
    assert files.got == ["u://1", "u://2", "u://3", "u://4"]


def test_an_evicted_file_stays_readable_where_it_is_open(files):
    digest = hashlib.sha256(b"1" * 900).hexdigest()
    path, descriptor = files.cache.open("u://1", 900, digest, lambda f: f.write(b"1" * 900))
    files.open("u://2", b"2" * 900)
    assert not path.exists()
    assert os.pread(descriptor, 900, 0) == b"1" * 900
    os.close(descriptor)


def test_a_file_larger_than_the_cache_is_refused(files):
    with pytest.raises(DataError) as caught:
        files.open("u://1", b"1" * 1001)
    assert str(caught.value) == (
        "data.cache_gb: u://1 has 1001 bytes, the cache holds at most 1000"
    )


@pytest.mark.parametrize("content", [b"x" * 10, b"1" * 9, b"1" * 11, b""])
def test_another_content_than_the_hash_is_not_kept(files, content):
    digest = hashlib.sha256(b"1" * 10).hexdigest()
    with pytest.raises(DataError, match=rf"u://1: sha256 \w+ came, manifest says {digest}"):
        files.cache.open("u://1", 10, digest, lambda file: file.write(content))
    assert not [p for p in files.cache.folder.iterdir() if p.suffix != ".lock"]
    files.open("u://1", b"1" * 10)


def test_a_copy_of_another_size_is_made_again(files):
    path = files.open("u://1", b"1" * 100)
    os.truncate(path, 50)
    assert files.open("u://1", b"1" * 100) == path
    assert files.got == ["u://1"] * 2


def test_an_interrupted_copy_leaves_nothing(files):
    def interrupted(file):
        file.write(b"1" * 400)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        files.cache.open("u://1", 800, "0" * 64, interrupted)
    assert not [p for p in files.cache.folder.iterdir() if p.suffix != ".lock"]


def killed_while_copying(folder):
    ShardCache(folder, 1000).open("u://1", 800, "0" * 64, lambda _: os._exit(9))


def test_the_partial_copy_of_a_killed_process_is_deleted(files):
    process = get_context("fork").Process(target=killed_while_copying, args=(files.cache.folder,))
    process.start()
    process.join()
    assert [p.stat().st_size for p in files.cache.folder.glob("*.partial")] == [800]
    files.open("u://2", b"2" * 900)
    assert not list(files.cache.folder.glob("*.partial"))


def reader(folder, log, seed):
    """Reads many files through a cache with room for three, and logs each copy made."""
    cache = ShardCache(folder, 3000)
    for turn in range(40):
        number = (turn * 7 + seed * 3) % 5
        content = bytes([number]) * 900

        def copy(file, content=content, number=number):
            with open(log, "ab") as lines:
                lines.write(b"%d\n" % number)
            file.write(content[:450])
            os.sched_yield()
            file.write(content[450:])

        digest = hashlib.sha256(content).hexdigest()
        _, descriptor = cache.open(f"u://{number}", 900, digest, copy)
        good = os.pread(descriptor, 1000, 0) == content
        os.close(descriptor)
        with cache._room_lock():  # other processes add and delete files meanwhile
            total = sum(p.stat().st_size for p in folder.glob("*.copy"))
        assert good and total <= 3000


def test_many_processes_share_a_cache_that_is_too_small(tmp_path):
    folder = tmp_path / "cache"
    run_forked(reader, *((folder, tmp_path / "log", n) for n in range(4)))
    assert not list(folder.glob("*.partial"))


def ask(folder, log, together):
    def copy(file):
        with open(log, "ab") as lines:
            lines.write(b"copied\n")
        file.write(b"1" * 900)

    digest = hashlib.sha256(b"1" * 900).hexdigest()
    cache = ShardCache(folder, 1000)
    together.wait()
    os.close(cache.open("u://1", 900, digest, copy)[1])


def test_processes_that_want_one_file_at_once_copy_it_once(tmp_path):
    run_together(ask, tmp_path / "cache", tmp_path / "log")
    assert (tmp_path / "log").read_bytes() == b"copied\n"
