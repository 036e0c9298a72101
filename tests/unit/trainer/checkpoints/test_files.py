"""The order in which a checkpoint reaches the disk, and what a cut or a damage leaves."""

import os
import shutil
from pathlib import Path

import pytest

from trainer.checkpoints.checkpoint import newest_checkpoint
from trainer.checkpoints.files import (
    find_damage,
    folder_of_step,
    publish_checkpoint,
    rotate,
    set_aside_newer,
)

FILES = ("weights.safetensors", "moments.safetensors", "grouping.safetensors", "progress.json")


def write(partial):
    for name in FILES:
        (partial / name).write_text(f"{name} of {partial.name}")


def save(folder, step, keep_last=2):
    path = folder_of_step(folder, step)
    publish_checkpoint(path, write)
    rotate(path, keep_last=keep_last, keep_every=None)
    return path


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_leftovers_of_killed_processes_are_no_checkpoints_and_are_swept(tmp_path):
    save(tmp_path, 1)
    for name in ("step-000000002.partial", "step-000000009.partial", "step-000000000.dropped"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "weights.safetensors").write_bytes(b"half")
    assert newest_checkpoint(tmp_path).name == "step-000000001"
    assert find_damage(save(tmp_path, 2)) is None
    assert names(tmp_path) == ["latest", "step-000000001", "step-000000002"]


class Recorder:
    """What reaches the disk, in order: (what, name), with folders known by their names."""

    def __init__(self, monkeypatch):
        self.calls = []
        fsync, replace, rmtree = os.fsync, os.replace, shutil.rmtree

        def record_fsync(descriptor):
            name = Path(os.readlink(f"/proc/self/fd/{descriptor}")).name
            self.calls.append(("sync", name))
            fsync(descriptor)

        def record_replace(source, target):
            self.calls.append(("name", Path(target).name))
            replace(source, target)

        def record_rmtree(path, **options):
            self.calls.append(("delete", Path(path).name))
            rmtree(path, **options)

        monkeypatch.setattr(os, "fsync", record_fsync)
        monkeypatch.setattr(os, "replace", record_replace)
        monkeypatch.setattr(shutil, "rmtree", record_rmtree)


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="names open files by /proc")
def test_nothing_is_named_before_it_is_on_the_disk_or_deleted_before_the_next_is(
    tmp_path, monkeypatch
):
    folder = tmp_path / "checkpoints"
    save(folder, 1, keep_last=1)
    calls = (recorder := Recorder(monkeypatch)).calls
    save(folder, 2, keep_last=1)
    files = {("sync", name) for name in (*FILES, "files.json")}
    partial, final = "step-000000002.partial", "step-000000002"
    pointer = calls[8][1]
    assert pointer.startswith(".partial-") and pointer.endswith("-latest")
    assert recorder.calls[5:] == [
        ("sync", partial), ("name", final), ("sync", "checkpoints"),
        ("sync", pointer), ("name", "latest"), ("sync", "checkpoints"),
        ("name", "step-000000001.dropped"), ("delete", "step-000000001.dropped"),
    ]  # fmt: skip
    assert set(calls[:5]) == files


@pytest.mark.parametrize("cut", range(1, 13))
def test_wherever_a_save_is_cut_the_newest_whole_one_is_found(cut, tmp_path, monkeypatch):
    """The disk fails for good at the n-th operation, as when a process is killed there."""
    save(tmp_path, 1, keep_last=1)
    left = [cut]

    def counted(function):
        def call(*arguments, **options):
            left[0] -= 1
            if left[0] <= 0:
                raise OSError(28, "No space left on device")
            return function(*arguments, **options)

        return call

    with monkeypatch.context() as patch:
        for module, name in ((os, "fsync"), (os, "replace"), (shutil, "rmtree")):
            patch.setattr(module, name, counted(getattr(module, name)))
        with pytest.raises(OSError, match="No space left"):
            save(tmp_path, 2, keep_last=1)
    named = (tmp_path / "step-000000002").exists()
    assert named == (cut > 7)  # six files and folders are synced, then it gets its name
    newest = newest_checkpoint(tmp_path)
    assert newest.name == ("step-000000002" if named else "step-000000001")
    save(tmp_path, 3, keep_last=1)
    assert names(tmp_path) == ["latest", "step-000000003"]


def test_what_a_resume_passed_over_neither_counts_nor_stays(tmp_path):
    """Damaged ones must not take the places of good ones among the last."""
    for step in (1, 8, 9):
        save(tmp_path, step, keep_last=3)
    for step in (8, 9):
        (tmp_path / f"step-{step:09d}" / "progress.json").unlink()
    chosen = newest_checkpoint(tmp_path)
    set_aside_newer(chosen)
    whole = "step-000000001"
    assert names(tmp_path) == ["latest", whole, *(f"step-00000000{n}.damaged" for n in (8, 9))]
    path = save(tmp_path, 10, keep_last=2)
    assert newest_checkpoint(tmp_path) == path
    assert names(tmp_path) == ["latest", whole, "step-000000010"]


def test_setting_aside_what_was_set_aside_before(tmp_path):
    for step in (1, 2):
        save(tmp_path, step)
    (tmp_path / "step-000000002.damaged").mkdir()
    set_aside_newer(tmp_path / "step-000000001")
    assert names(tmp_path) == ["latest", "step-000000001", "step-000000002.damaged"]


def test_what_cannot_be_deleted_is_named_and_deleted_later(tmp_path, monkeypatch, caplog):
    for step in (1, 2):
        save(tmp_path, step)
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "rmtree", lambda *_, **__: None)
        save(tmp_path, 3)
    assert f"{tmp_path / 'step-000000001.dropped'} cannot be deleted now" in caplog.text
    assert newest_checkpoint(tmp_path).name == "step-000000003"
    save(tmp_path, 4)
    assert names(tmp_path) == ["latest", "step-000000003", "step-000000004"]
