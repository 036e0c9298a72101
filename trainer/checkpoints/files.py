"""Checkpoint folders on the disk: publish them, check that they are whole, delete old ones."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from dmtg.files import PARTIAL_PREFIX, atomic_write, sync_path

logger = logging.getLogger(__name__)

WEIGHTS, MOMENTS_FILE, GROUPING = (f"{n}.safetensors" for n in ("weights", "moments", "grouping"))
PROGRESS = "progress.json"
_FILES = "files.json"  # sizes and hashes of the others
_POINTER = "latest"
_NAME = re.compile(r"step-(\d{9})")
# Suffixes of folders that are no checkpoints: being written, being deleted, and damaged ones that a
# resume has passed over.
_PARTIAL, _DROPPED, _DAMAGED = ".partial", ".dropped", ".damaged"


def folder_of_step(folder: Path, step: int) -> Path:
    """Return the folder of the checkpoint of a step."""
    return folder / f"step-{step:09d}"


def publish_checkpoint(final: Path, write: Callable[[Path], None]) -> None:
    """Write to a temporary folder, fsync, rename, update `latest`.

    No older checkpoint is touched before the folder is complete and on the disk, and an error
    leaves nothing behind. A whole checkpoint of this name is kept: a step has one state.

    Args:
        final: The folder of the checkpoint.
        write: Writes the files into the folder that it is given.

    Raises:
        OSError: The disk is full or cannot be written.
    """
    folder = final.parent
    _sweep(folder, _PARTIAL, _DROPPED)  # what a killed process has left
    for pointer in folder.glob(f"{PARTIAL_PREFIX}*-{_POINTER}"):
        pointer.unlink(missing_ok=True)
    if final.exists() and find_damage(final) is None:
        _point(folder, final.name)
        return
    partial = final.with_name(f"{final.name}{_PARTIAL}")
    try:
        partial.mkdir(parents=True)
        write(partial)
        files = {path.name: _fingerprint(path) for path in sorted(partial.iterdir())}
        (partial / _FILES).write_text(json.dumps(files))
        for path in (*partial.iterdir(), partial):
            sync_path(path)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    if final.exists():
        _drop(final)
    os.replace(partial, final)
    sync_path(folder)
    _point(folder, final.name)


def rotate(newest: Path, *, keep_last: int, keep_every: int | None) -> None:
    """Delete all but the last ones and the steps that are multiples of `keep_every`."""
    older = [path for path in checkpoints(newest.parent) if path.name <= newest.name]
    for path in older[:-keep_last]:
        if keep_every is None or step_of(path) % keep_every:
            _drop(path)
    _sweep(newest.parent, _DAMAGED)


def checkpoints(folder: Path) -> list[Path]:
    """Return the checkpoints of a folder, whole or not, the oldest first."""
    return sorted(p for p in folder.glob("step-*") if _NAME.fullmatch(p.name) and p.is_dir())


def set_aside_newer(chosen: Path) -> None:
    """Rename the checkpoints that a resume passed over; the next save deletes them."""
    for path in checkpoints(chosen.parent):
        if path.name > chosen.name:
            aside = path.with_name(f"{path.name}{_DAMAGED}")
            shutil.rmtree(aside, ignore_errors=True)
            os.replace(path, aside)


def find_damage(path: Path) -> str | None:
    """Return what is damaged in a checkpoint folder; None if it is whole.

    Raises:
        OSError: A file exists but cannot be read, so that nothing is known of its content.
    """
    try:
        files = json.loads((path / _FILES).read_text())
        expected = {name: (files[name]["bytes"], files[name]["sha256"]) for name in files}
    except (FileNotFoundError, ValueError, TypeError, KeyError):
        return f"{_FILES} is missing or unreadable"
    for name in (WEIGHTS, MOMENTS_FILE, GROUPING, PROGRESS):
        if name not in expected:
            return f"{_FILES} does not list {name}"
    for name, (size, _) in expected.items():
        if not (path / name).is_file():
            return f"{name} is missing"
        actual = (path / name).stat().st_size
        if actual != size:
            return f"{name} has {actual} bytes, {size} were written"
    for name, (_, sha256) in expected.items():
        if _fingerprint(path / name)["sha256"] != sha256:
            return f"{name} has another content than was written"
    return None


def _fingerprint(path: Path) -> dict[str, Any]:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 22):
            digest.update(block)
    return {"bytes": path.stat().st_size, "sha256": digest.hexdigest()}


def step_of(path: Path) -> int:
    """Return the step of one of the folders that `checkpoints` returns."""
    match = _NAME.fullmatch(path.name)
    assert match is not None, "checkpoints() gives no others"
    return int(match[1])


def _drop(path: Path) -> None:
    """Rename and delete a checkpoint: a partly deleted one must not look like a damaged one."""
    dropped = path.with_name(f"{path.name}{_DROPPED}")
    os.replace(path, dropped)
    _delete(dropped)


def _sweep(folder: Path, *suffixes: str) -> None:
    for path in folder.glob("step-*"):
        if path.suffix in suffixes:
            _delete(path)


def _delete(path: Path) -> None:
    """Delete a folder, or log that it cannot be deleted: on NFS a reader of a file prevents it."""
    shutil.rmtree(path, ignore_errors=True)
    if path.exists():
        logger.warning("%s cannot be deleted now; the next save tries again", path)


def _point(folder: Path, name: str) -> None:
    with atomic_write(folder / _POINTER) as file:
        file.write(name)
