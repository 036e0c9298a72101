"""Files appear under their names only when they are complete and on the disk."""

import os
import stat
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from dmtg.files import atomic_path, atomic_write, check_outputs

ROOT = Path(__file__).resolve().parents[3]


def names(folder):
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize(("mode", "content"), [("w", "zwölf\n"), ("wb", b"\x00\xff")])
def test_what_is_written_can_be_read(mode, content, tmp_path):
    with atomic_write(tmp_path / "a.txt", mode) as file:
        file.write(content)
    expected = content if mode == "wb" else content.encode("utf-8")
    assert (tmp_path / "a.txt").read_bytes() == expected
    assert names(tmp_path) == ["a.txt"]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit])
@pytest.mark.parametrize("before", [None, "old"])
def test_an_error_leaves_the_old_file_and_no_other(error, before, tmp_path):
    path = tmp_path / "a.txt"
    if before is not None:
        path.write_text(before)
    with pytest.raises(error), atomic_write(path) as file:
        file.write("half")
        file.flush()
        raise error("in the block")
    assert names(tmp_path) == ([] if before is None else ["a.txt"])
    assert before is None or path.read_text() == before


def test_until_the_block_ends_the_old_file_is_read(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("old")
    with atomic_write(path) as file:
        file.write("new")
        file.flush()
        assert path.read_text() == "old"
    assert path.read_text() == "new"


def test_a_file_that_the_block_does_not_write_is_an_error(tmp_path):
    with pytest.raises(FileNotFoundError), atomic_path(tmp_path / "a.txt"):
        pass
    assert names(tmp_path) == []


def test_the_temporary_name_ends_like_the_final_one(tmp_path):
    with atomic_path(tmp_path / "picture.png") as partial:
        assert partial.parent == tmp_path and partial.suffix == ".png"
        partial.write_bytes(b"x")


def test_a_missing_folder_is_an_error(tmp_path):
    with pytest.raises(FileNotFoundError), atomic_write(tmp_path / "none" / "a.txt"):
        pass


def test_a_folder_that_is_a_file_is_the_error_that_is_reported(tmp_path):
    (tmp_path / "a").write_text("a file")
    with pytest.raises(NotADirectoryError), atomic_write(tmp_path / "a" / "b.txt"):
        pass


def test_a_folder_that_may_not_be_written_is_an_error(tmp_path, monkeypatch):
    if os.geteuid() == 0:  # root may write anywhere, so the system call is replaced

        def refuse(*_arguments, **_options):
            raise PermissionError(13, "Permission denied")

        monkeypatch.setattr(os, "replace", refuse)
    (tmp_path / "a.txt").write_text("old")
    tmp_path.chmod(0o500)
    try:
        with pytest.raises(PermissionError), atomic_write(tmp_path / "a.txt") as file:
            file.write("new")
    finally:
        tmp_path.chmod(0o700)
    assert names(tmp_path) == ["a.txt"] and (tmp_path / "a.txt").read_text() == "old"


@pytest.mark.parametrize("mask", [0o022, 0o077])
def test_the_mode_is_the_one_of_open(mask, tmp_path):
    before = os.umask(mask)
    try:
        with atomic_write(tmp_path / "atomic") as file:
            file.write("x")
        (tmp_path / "plain").write_text("x")
    finally:
        os.umask(before)
    modes = {stat.S_IMODE((tmp_path / name).stat().st_mode) for name in ("atomic", "plain")}
    assert modes == {0o666 & ~mask}


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="names open files by /proc")
@pytest.mark.parametrize("sync", [True, False])
def test_the_content_is_on_the_disk_before_it_has_its_name(sync, tmp_path, monkeypatch):
    calls = []
    fsync, replace = os.fsync, os.replace

    def record_fsync(descriptor):
        path = Path(os.readlink(f"/proc/self/fd/{descriptor}"))
        calls.append(("sync", "folder" if path.is_dir() else path.read_text()))
        fsync(descriptor)

    def record_replace(source, target):
        calls.append(("name", Path(target).name))
        replace(source, target)

    monkeypatch.setattr(os, "fsync", record_fsync)
    monkeypatch.setattr(os, "replace", record_replace)
    with atomic_write(tmp_path / "a.txt", sync=sync) as file:
        file.write("all of it")
    synced = [("sync", "all of it"), ("name", "a.txt"), ("sync", "folder")]
    assert calls == (synced if sync else [("name", "a.txt")])


def test_a_sync_that_fails_leaves_the_old_file(tmp_path, monkeypatch):
    def fail(_descriptor):
        raise OSError(28, "No space left on device")

    (tmp_path / "a.txt").write_text("old")
    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="No space left"), atomic_write(tmp_path / "a.txt") as file:
        file.write("new")
    assert names(tmp_path) == ["a.txt"] and (tmp_path / "a.txt").read_text() == "old"


def test_threads_that_write_one_file_leave_a_whole_one(tmp_path):
    """All of them are in their blocks at once, and each ends with its own content in place."""
    path, inside = tmp_path / "a.txt", threading.Barrier(4)
    errors = []

    def write(letter):
        try:
            for _ in range(20):
                with atomic_write(path, sync=False) as file:
                    file.write(letter * 5000)
                    inside.wait(20)
                    file.write(letter * 5000)
                text = path.read_text()
                assert len(text) == 10_000 and len(set(text)) == 1
        except BaseException as error:
            errors.append(error)
            inside.abort()

    threads = [threading.Thread(target=write, args=(letter,)) for letter in "abcd"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors and names(tmp_path) == ["a.txt"]


WRITER = """
import sys
from dmtg.files import atomic_write
for _ in range(200):
    with atomic_write(sys.argv[1], sync=False) as file:
        for _ in range(10):
            file.write(sys.argv[2] * 1000)
            file.flush()
"""


def test_processes_that_write_one_file_leave_a_whole_one(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("a" * 10_000)
    command = [sys.executable, "-c", WRITER, str(path)]
    writers = [subprocess.Popen([*command, letter], cwd=ROOT) for letter in "bc"]
    while any(writer.poll() is None for writer in writers):
        text = path.read_text()
        assert len(text) == 10_000 and len(set(text)) == 1
    assert [writer.returncode for writer in writers] == [0, 0]
    assert names(tmp_path) == ["a.txt"]


def test_outputs_that_replace_nothing_are_fine(tmp_path):
    (tmp_path / "in").write_text("x")
    check_outputs([(tmp_path / "a", "one"), (tmp_path / "b", "two")], [tmp_path / "in"])
    (tmp_path / "a").write_text("x")
    check_outputs([(tmp_path / "a", "one")], [tmp_path / "in"], overwrite=True)


def test_outputs_that_replace_a_file_are_refused_by_name(tmp_path):
    a = tmp_path / "a"
    with pytest.raises(ValueError, match="a: would be both one and two"):
        check_outputs([(a, "one"), (a, "two")], overwrite=True)
    a.write_text("x")
    with pytest.raises(ValueError, match=r"a: exists and would be replaced by one; .*--overwrite"):
        check_outputs([(a, "one")])
    with pytest.raises(ValueError, match="a: is an input and would be replaced by one"):
        check_outputs([(a, "one")], [tmp_path / "." / "a"], overwrite=True)
    (tmp_path / "hard").hardlink_to(a)
    (tmp_path / "soft").symlink_to(a)
    for link in ("hard", "soft"):
        with pytest.raises(ValueError, match=f"{link}: is an input"):
            check_outputs([(tmp_path / link, "one")], [a], overwrite=True)
    (tmp_path / "broken").symlink_to(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="broken: exists and would be replaced"):
        check_outputs([(tmp_path / "broken", "one")])
