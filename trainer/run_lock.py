"""Keeps two starts of a run from writing into its folder at once."""

from __future__ import annotations

import errno
import fcntl
import json
import logging
import os
import socket
import time
from pathlib import Path
from typing import IO

from trainer.errors import UserError

logger = logging.getLogger(__name__)

# A network file system forgets the lock of a node that died after its lease, 90 s by default.
_WAIT = 120.0
_HELD = (errno.EACCES, errno.EAGAIN)


def lock(path: Path) -> IO[str]:
    """Lock a file for as long as it is open, at the longest until this process ends.

    Where the file system knows no locks this is said, and nothing is locked.

    Raises:
        UserError: Another process has held it for two minutes.
    """
    file = open(path, "a+", encoding="utf-8")  # noqa: SIM115 - open as long as the run
    end = time.monotonic() + _WAIT
    said = False
    while True:
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            break
        except OSError as error:
            if error.errno not in _HELD:
                logger.warning("%s: the file system has no locks: %s", path, error.strerror)
                return file
        file.seek(0)
        holder = file.read().strip() or "an unknown process"
        if time.monotonic() >= end:
            file.close()
            raise UserError(
                f"run.out: {holder} works in {path.parent}; end it first, or delete {path.name} "
                "there if it is gone"
            )
        if not said:
            logger.warning("%s works in %s; waiting for its end", holder, path.parent)
        said = True
        time.sleep(0.5)
    file.truncate(0)
    who = {"host": socket.gethostname(), "pid": os.getpid(), "job": os.environ.get("SLURM_JOB_ID")}
    file.write(json.dumps(who))
    file.flush()
    return file
