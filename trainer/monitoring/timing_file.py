"""`timing.jsonl` of a run: the measured times of all its starts."""

from __future__ import annotations

import json
import logging
import os
import time
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from trainer.json_file import to_json

logger = logging.getLogger(__name__)

_TAIL = 1 << 16  # bytes in which the last whole line must lie


class TimingFile:
    """Appends records; those of earlier starts are kept, also of steps that are repeated.

    An error in writing it is logged and never ends the run.

    Args:
        out: Folder of the run.
    """

    def __init__(self, out: Path) -> None:
        self._path = out / "timing.jsonl"
        self._start = time.monotonic()
        self._hours = 0.0
        self._warned = False
        if self._path.exists():
            self._hours = _mend(self._path)

    def append(self, step: int, kind: str, values: dict[str, Any]) -> float:
        """Write a record, and return the hours that all starts of the run have taken so far."""
        hours = round(self._hours + (time.monotonic() - self._start) / 3600, 5)
        now = datetime.now(timezone.utc).isoformat(timespec="milliseconds")
        record = {"step": step, "kind": kind, "time": now, "hours": hours, **values}
        try:
            with open(self._path, "ab") as file:
                file.write(to_json(record).encode() + b"\n")
        except OSError as error:
            if not self._warned:
                logger.warning("%s cannot be written: %s", self._path, error.strerror)
            self._warned = True
        return hours


def _mend(path: Path) -> float:
    """Cut off a line that was written in part; return the hours of the last whole line."""
    with open(path, "rb+") as file:
        size = file.seek(0, os.SEEK_END)
        start = file.seek(max(0, size - _TAIL))
        tail = file.read()
        end = tail.rfind(b"\n") + 1
        file.truncate(start + end)
    values = (_hours(line) for line in reversed(tail[:end].splitlines()))
    return next((hours for hours in values if hours is not None), 0.0)


def _hours(line: bytes) -> float | None:
    """Return the hours of a line; None if it is damaged, as a full disk leaves it."""
    try:
        return float(json.loads(line)["hours"])
    except (ValueError, KeyError, TypeError):
        return None
