"""Checkpoint folders on the disk: how one appears, what makes it whole, which ones are kept."""

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
# Behind the name of a folder that is no checkpoint: one being written, one being deleted, and one
# that a resume found damaged.
_PARTIAL, _DROPPED, _DAMAGED = ".partial", ".dropped", ".damaged"


def folder_of_step(folder: Path, step: int) -> Path:
    """Where the checkpoint of a step lies."""
    return folder / f"step-{step:09d}"


def publish_checkpoint(final: Path, write: Callable[[Path], None]) -> None:
    """Let `write` fill a folder beside, sync it, give it its name, and move the pointer to it.

    Until the folder is complete and on the disk, no checkpoint that was there before is touched;
    a failure leaves no trace. A whole one that already has the name stays: a step has one state.

    Raises:
        OSError: The disk is full or cannot be written.
    """
    folder = final.parent
    _sweep(folder, _PARTIAL, _DROPPED)  # what a killed process has left
    for pointer in folder.glob(f"{PARTIAL_PREFIX}*-{_POINTER}"):
        pointer.unlink(missing_ok=True)
    if final.exists() and find_fault(final) is None:
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
    """Delete what is older than the last ones, but the steps that are multiples of `keep_every`."""
    older = [path for path in checkpoints(newest.parent) if path.name <= newest.name]
    for path in older[:-keep_last]:
        if keep_every is None or _step(path) % keep_every:
            _drop(path)
    _sweep(newest.parent, _DAMAGED)


def checkpoints(folder: Path) -> list[Path]:
    """The checkpoints of a folder, whole or not, the oldest first."""
    return sorted(p for p in folder.glob("step-*") if _NAME.fullmatch(p.name) and p.is_dir())


def set_aside_newer(chosen: Path) -> None:
    """Rename what a resume passed over, so that it counts no more; the next save deletes it."""
    for path in checkpoints(chosen.parent):
        if path.name > chosen.name:
            aside = path.with_name(f"{path.name}{_DAMAGED}")
            shutil.rmtree(aside, ignore_errors=True)
            os.replace(path, aside)


def find_fault(path: Path) -> str | None:
    """What is wrong with a checkpoint folder; None if it is whole.

    Raises:
        OSError: A file is there but cannot be read, which says nothing about what it holds.
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
        found = (path / name).stat().st_size
        if found != size:
            return f"{name} has {found} bytes, {size} were written"
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


def _step(path: Path) -> int:
    match = _NAME.fullmatch(path.name)
    assert match is not None, "checkpoints() gives no others"
    return int(match[1])


def _drop(path: Path) -> None:
    """Delete a checkpoint; one that is half deleted must not be taken for a damaged one."""
    dropped = path.with_name(f"{path.name}{_DROPPED}")
    os.replace(path, dropped)
    _delete(dropped)


def _sweep(folder: Path, *suffixes: str) -> None:
    for path in folder.glob("step-*"):
        if path.suffix in suffixes:
            _delete(path)


def _delete(path: Path) -> None:
    """Delete a folder, or say that it has to wait: on NFS a reader of its files is enough."""
    shutil.rmtree(path, ignore_errors=True)
    if path.exists():
        logger.warning("%s cannot be deleted now; the next save tries again", path)


def _point(folder: Path, name: str) -> None:
    with atomic_write(folder / _POINTER) as file:
        file.write(name)
