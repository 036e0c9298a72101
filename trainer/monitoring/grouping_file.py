"""`grouping.jsonl` of a run: the probabilities of the branches over time, and the affinities.

Legend: N tasks, K branches.
"""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from dmtg.files import atomic_write
from trainer.json_file import to_json

logger = logging.getLogger(__name__)

_PER_DOUBLING = 50  # records of probabilities while the number of steps doubles
_DIGITS = 3  # after the decimal point


class GroupingFile:
    """Appends records for `dmtg report`; a resumed run drops those of steps that it repeats.

    An error in writing it is logged and never ends the run.

    Args:
        path: The file.
        start_step: Steps done before; records of later steps are dropped.
        log_every: Steps between two calls of `probabilities`.
    """

    def __init__(self, path: Path, start_step: int, log_every: int) -> None:
        self._path = path
        self._log_every = log_every
        self._warned = False
        try:
            _drop_after(path, start_step)
        except OSError as error:
            self._warn(error)

    def probabilities(self, step: int, probabilities: Tensor) -> None:
        """Write the probabilities [N,K] of the branches that the network has, if they are due.

        Nothing is written while each task is certain of its branch: `metrics.jsonl` has the heads.
        """
        if not is_due(step, self._log_every):
            return
        rounded = probabilities.detach().double().cpu().numpy().round(_DIGITS)
        if rounded.max(axis=1).min() < 1.0:
            self._append(step, "probabilities", rounded.tolist())

    def pairs(self, step: int, kind: str, values: NDArray[np.float64]) -> None:
        """Write values of pairs of tasks [N,N], which are symmetric, as rows up to the diagonal."""
        rounded = values.round(_DIGITS)
        self._append(step, kind, [row[: n + 1].tolist() for n, row in enumerate(rounded)])

    def _append(self, step: int, kind: str, rows: list[Any]) -> None:
        try:
            with open(self._path, "ab") as file:
                file.write(to_json({"step": step, "kind": kind, kind: rows}).encode() + b"\n")
        except OSError as error:
            self._warn(error)

    def _warn(self, error: OSError) -> None:
        if not self._warned:
            logger.warning("%s cannot be written: %s", self._path, error.strerror)
        self._warned = True


def is_due(step: int, log_every: int) -> bool:
    """Return whether the probabilities after a step are written.

    The number of records grows with the logarithm of the number of steps, which is not known
    before the end. It depends on nothing but the step, so that a resumed run writes the same ones.
    """
    number, rest = divmod(step, log_every)
    doublings = max(0, (number // _PER_DOUBLING).bit_length() - 1)
    return rest == 0 and number % (1 << doublings) == 0


def read_grouping_file(path: Path) -> list[dict[str, Any]]:
    """Return the records, without a line that is being written; empty if there is no file.

    Raises:
        OSError: The file cannot be read.
    """
    try:
        lines = path.read_bytes().splitlines()
    except FileNotFoundError:
        return []
    records = (_record(line) for line in lines)
    return [record for record in records if record is not None]


def _drop_after(path: Path, step: int) -> None:
    if not path.exists():
        return
    lines = path.read_bytes().splitlines(keepends=True)
    kept = []
    for line in lines:
        record = _record(line)
        if record is not None and record["step"] <= step:
            kept.append(line)
    if len(kept) < len(lines):
        with atomic_write(path, "wb") as file:
            file.writelines(kept)


def _record(line: bytes) -> dict[str, Any] | None:
    """Return the record of a line; None if it is damaged, as a full disk or a kill leaves it."""
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):
        return None
    known = isinstance(record, dict) and isinstance(record.get("step"), int)
    return record if known and isinstance(record.get("kind"), str) else None
