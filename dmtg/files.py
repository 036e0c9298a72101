"""Files that appear under their names only when they are complete and on the disk."""

from __future__ import annotations

import hashlib
import os
import socket
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

_CHUNK = 2**20  # bytes that are read at once
PARTIAL_PREFIX = ".partial-"  # of the temporary names; a killed process leaves such files behind


@contextmanager
def atomic_path(path: str | Path, *, sync: bool = True) -> Iterator[Path]:
    """Give a temporary path in the same folder; rename it to `path` when the block ends.

    An error in the block removes the temporary file and leaves `path` as it was. The temporary
    name ends like the final one, for libraries that choose a format by it, and holds host, process
    and thread, so that two writers never write into one file.

    Args:
        path: The final name, replaced if it exists.
        sync: Whether the content is on the disk when this returns.

    Raises:
        OSError: The file cannot be written, synced or renamed.
    """
    path = Path(path)
    partial = partial_path(path)
    try:
        yield partial
        publish(partial, path, sync=sync)
    except BaseException:
        with suppress(OSError):  # the error in the block is the one to report
            partial.unlink(missing_ok=True)
        raise


@contextmanager
def atomic_write(path: str | Path, mode: str = "w", *, sync: bool = True) -> Iterator[IO[Any]]:
    """Open a file for writing that gets its name when the block ends, see `atomic_path`.

    Args:
        mode: As `open` takes it, `w` for text in UTF-8 or `wb` for bytes.
    """
    encoding = None if "b" in mode else "utf-8"
    with atomic_path(path, sync=sync) as partial, open(partial, mode, encoding=encoding) as file:
        yield file


def partial_path(path: Path) -> Path:
    """Return the temporary name of a file that this thread writes, see `atomic_path`."""
    writer = f"{socket.gethostname()}-{os.getpid()}-{threading.get_native_id()}"
    return path.with_name(f"{PARTIAL_PREFIX}{writer}-{path.name}")


def publish(partial: Path, path: Path, *, sync: bool = True) -> None:
    """Rename a complete, closed file to its final name, see `atomic_path`.

    `atomic_path` calls this; call it directly for a file that is written over many calls.
    """
    if sync:
        sync_path(partial)
    os.replace(partial, path)
    if sync:
        sync_path(path.parent)


def sync_path(path: Path) -> None:
    """Flush a file, or the entries of a folder, to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sha256_of(path: Path) -> str:
    """Return the hex sha256 of a file.

    Raises:
        OSError: It cannot be read.
    """
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def check_outputs(
    outputs: Iterable[tuple[Path, str]], inputs: Iterable[Path] = (), *, overwrite: bool = False
) -> None:
    """Check, before anything is written, that writing files loses none.

    Args:
        outputs: The files to write, and what each of them is, for messages.
        inputs: Files that are read, which are never replaced.
        overwrite: Whether other existing files may be replaced.

    Raises:
        ValueError: Two outputs have one path, or an output would replace a file.
    """
    planned: dict[Path, str] = {}
    read = {(status.st_dev, status.st_ino) for status in map(os.stat, inputs)}
    for path, what in outputs:
        if path in planned:
            raise ValueError(f"{path}: would be both {planned[path]} and {what}")
        planned[path] = what
        if not os.path.lexists(path):
            continue
        if path.exists() and (path.stat().st_dev, path.stat().st_ino) in read:
            raise ValueError(f"{path}: is an input and would be replaced by {what}")
        if not overwrite:
            raise ValueError(
                f"{path}: exists and would be replaced by {what}; name another folder, or add "
                "--overwrite"
            )


def user_cache_folder(name: str) -> Path:
    """Return the folder `name` for what can be computed again, which need not exist.

    It is in the folder that the environment variable DMTG_CACHE_DIR names, by default in `dmtg` of
    the user's cache folder.

    Raises:
        OSError: The user has no home folder.
    """
    named = os.environ.get("DMTG_CACHE_DIR")
    if named:
        return Path(named) / name
    try:
        caches = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    except RuntimeError as error:
        raise OSError(str(error)) from error
    return caches / "dmtg" / name
