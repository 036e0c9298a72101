"""`status.json` of a run: one small file that a monitor can read at any time."""

from __future__ import annotations

import json
import logging
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, Literal

from dmtg.files import atomic_write
from dmtg.secrets import without_secrets_in
from trainer.errors import Preempted, UserError
from trainer.json_file import to_json

logger = logging.getLogger(__name__)

State = Literal["starting", "running", "evaluating", "finished", "preempted", "failed", "stopped"]
_KEPT = ("finished", "preempted", "failed")  # by a process that ends later
ENDED = (*_KEPT, "stopped")
LOST = "lost"  # only as read: the process is gone and could not write how it ended

_NAME = "status.json"
_ALLOWED_SECONDS = 300.0  # without an update, before a status is stale
_REQUIRED = ("state", "host", "pid", "job", "checkpoint", "cause", "error", "updated")
_BRIEF = (*_REQUIRED, "step", "num_steps")

_runs: list[Path] = []  # of this process: one, and perhaps its search


class StatusFile:
    """A file that is replaced atomically at every write.

    An error in writing it is logged and never ends the run.

    Args:
        out: Folder of the run; nothing is written while it does not exist.
    """

    def __init__(self, out: Path) -> None:
        self._path = out / _NAME
        self._values: dict[str, Any] | None = None
        self._warned = False

    def write(self, state: State, **values: object) -> None:
        """Set some values and keep the others; for the main process.

        Args:
            state: State of the run.
            values: Anything that JSON can hold; a number that is not finite becomes null.
        """
        of_this_start = {
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "job": os.environ.get("SLURM_JOB_ID"),
            "checkpoint": self._checkpoint(),
            "cause": None,
            "error": None,
        }
        self._replace({"state": state, **of_this_start, **values})

    def fail(self, message: str) -> None:
        """Set the state to `failed`; any process may call it, and the first message is kept."""
        if self._read().get("state") not in _KEPT:
            self._replace({"state": "failed", "error": message, "checkpoint": self._checkpoint()})

    def stop(self, cause: str) -> None:
        """Set the state to `stopped`, unless the run has ended; any process may call it."""
        if self._read().get("state") not in ENDED:
            self.write("stopped", cause=cause)

    def _read(self) -> dict[str, Any]:
        try:
            return json.loads(self._path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}

    def _checkpoint(self) -> str | None:
        """Return the name of the newest checkpoint."""
        try:
            return (self._path.parent / "checkpoints" / "latest").read_text(encoding="utf-8")
        except OSError:
            return None

    def _replace(self, values: dict[str, Any]) -> None:
        if not self._path.parent.is_dir():
            return
        if self._values is None:
            self._values = self._read()
        now = datetime.now(timezone.utc).isoformat(timespec="milliseconds")
        self._values |= {**values, "updated": now}
        content = without_secrets_in(self._values)
        try:
            # A sync costs too much for a file that is replaced within seconds.
            with atomic_write(self._path, sync=False) as file:
                file.write(to_json(content, indent=1))
        except OSError as error:
            if not self._warned:
                logger.warning("%s cannot be written: %s", self._path, error.strerror)
            self._warned = True
            if content["state"] in ENDED:
                self._overwrite(content)

    def _overwrite(self, content: dict[str, Any]) -> None:
        """Write the end of a run over the file where there is no space for another one.

        Only what matters, in as many bytes as the file has: a full disk takes no more.
        """
        brief = {key: content.get(key) for key in _BRIEF}
        with suppress(OSError), open(self._path, "r+b") as file:
            size = os.fstat(file.fileno()).st_size
            excess = len(to_json(brief, indent=1)) - size
            if excess > 0 and brief["error"] is not None:
                brief["error"] = brief["error"][: -excess - len("...")] + "..."
            data = to_json(brief, indent=1).encode()
            if len(data) <= size:
                file.write(data.ljust(size))


@contextmanager
def reported(out: Path, *, main: bool, begun: bool = True) -> Iterator[None]:
    """Write the status of a run when it starts and when it ends.

    An error in the block leaves the status unchanged: `trainer.health.failures` finds out whether
    it is the cause or a consequence, and calls `note_failure` with the cause.

    Args:
        out: Folder of the run, which this process may write to.
        main: Whether this is the main process.
        begun: Whether the folder holds the run already; a new one must stay empty if it cannot be
            started.
    """
    _runs.append(out)
    if main and begun:
        StatusFile(out).write("starting")
    try:
        yield
    except Preempted as stop:
        if main:
            StatusFile(out).write("preempted", cause=stop.cause, step=stop.step)
        _runs.remove(out)
        raise
    if main:
        StatusFile(out).write("finished", eta_seconds=0.0)
    _runs.remove(out)


def note_failure(message: str) -> None:
    """Write why the run of this process failed into its status, and into that of its search."""
    for out in filter(_holds_run, _runs):
        StatusFile(out).fail(message)


def note_stop(cause: str) -> None:
    """Write that a signal ended this process before its first step, as `note_failure`."""
    for out in filter(_holds_run, _runs):
        StatusFile(out).stop(cause)


def _holds_run(out: Path) -> bool:
    """Return whether a start got so far; else its folder, if it was made, is deleted again."""
    return (out / "config.yaml").is_file()


def read_status(out: Path) -> dict[str, Any]:
    """Read `status.json` of a run, or of its search while that runs.

    Returns:
        The values of the file with `age_seconds`, and with `stale`: why the run may have ended
        without a status, or None. The state is `lost` if its process is known to be gone.

    Raises:
        UserError: There is no status, or it cannot be read.
    """
    status = _load(out / _NAME)
    if status is None or status["state"] == "starting":
        search = _search_status(out / "search")
        if search is not None:
            status = search
            status.pop("grouping", None)  # that of the search is not what it finds
    if status is None:
        raise UserError(f"{out} has no {_NAME}: no run has been started in this folder")
    updated = datetime.fromisoformat(status["updated"])
    age = (datetime.now(timezone.utc) - updated).total_seconds()
    stale = _stale(status, age)
    if stale is not None and not _may_run(status):
        status["state"] = LOST
    return {**status, "age_seconds": round(age, 1), "stale": stale}


def _search_status(folder: Path) -> dict[str, Any] | None:
    """Return the status of a search, or of its newest run, that has not ended."""
    for path in (folder, *sorted(folder.glob("round-*"), reverse=True)):
        status = _load(path / _NAME)
        if status is not None and status["state"] not in ENDED:
            return status
    return None


def _load(path: Path) -> dict[str, Any] | None:
    try:
        status = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path}: cannot be read ({error})") from None
    missing = [key for key in _REQUIRED if not isinstance(status, dict) or key not in status]
    if missing:
        raise UserError(f"{path}: is not the status of a run ({missing[0]} is missing)")
    return status


def _stale(status: dict[str, Any], age: float) -> str | None:
    if status["state"] in ENDED:
        return None
    if not _may_run(status):
        return f"process {status['pid']} has ended"
    # Evaluation and saving take longer than the steps between two updates.
    allowed = max(_ALLOWED_SECONDS, 10 * (status.get("interval_seconds") or 0.0))
    return f"no update for {age:.0f} s, expected within {allowed:.0f} s" if age > allowed else None


def _may_run(status: dict[str, Any]) -> bool:
    """Return whether the process may exist; that of another machine cannot be seen from here."""
    return status["host"] != socket.gethostname() or _alive(status["pid"])


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
