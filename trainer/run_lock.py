"""The lock of a run's folder, which keeps two processes from writing into it at once."""

from __future__ import annotations

import errno
import json
import logging
import os
import socket
import time
from pathlib import Path

from filelock import BaseFileLock, FileLock, Timeout

from trainer.errors import UserError

logger = logging.getLogger(__name__)

# A network file system releases the lock of a node that died after its lease, 90 s by default.
WAIT_SECONDS = 120.0
_POLL_SECONDS = 0.5
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL)


def lock(path: Path, wait_seconds: float | None = None) -> BaseFileLock:
    """Lock a file until the lock is released or this process ends, however it ends.

    The file names its holder as JSON: host, process and Slurm job. On a file system without locks
    a warning is logged and nothing is locked. A process that holds the lock already gets it again,
    and has to release it as often.

    Args:
        path: The file; its folder is made, also where another process deletes it meanwhile.
        wait_seconds: How long to wait for another process; `WAIT_SECONDS` by default.

    Raises:
        UserError: Another process still holds it after that time.
        OSError: The file cannot be made.
    """
    end = time.monotonic() + (WAIT_SECONDS if wait_seconds is None else wait_seconds)
    while True:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            return _lock(path, end)
        except FileNotFoundError:  # its holder has failed, and deleted the folder that it had made
            if time.monotonic() > end:
                raise


def _lock(path: Path, end: float) -> BaseFileLock:
    # A soft lock, which is a file that its holder deletes, would outlive a holder that is killed.
    held = FileLock(
        path,
        thread_local=False,
        is_singleton=True,
        fallback_to_soft=False,
        on_acquired=_write_holder,
    )
    try:
        try:
            held.acquire(timeout=0)
        except Timeout:
            wait = end - time.monotonic()
            if wait <= 0:
                raise
            logger.warning("%s uses %s; waiting until it ends", _holder(path), path.parent)
            held.acquire(timeout=wait, poll_interval=_POLL_SECONDS)
    except Timeout:
        raise UserError(
            f"run.out: {_holder(path)} uses {path.parent}; end it first, or delete {path.name} "
            "there if that process no longer exists"
        ) from None
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise
        logger.warning("%s: the file system has no locks: %s", path, error.strerror)
    return held


def _write_holder(descriptor: int) -> None:
    """Write who holds the lock into the lock file, through the descriptor that holds it."""
    holder = {
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "job": os.environ.get("SLURM_JOB_ID"),
    }
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, json.dumps(holder).encode(), 0)


def _holder(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8").strip() or "an unknown process"
    except OSError:
        return "an unknown process"
