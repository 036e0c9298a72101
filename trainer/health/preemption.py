"""Stops a run early and whole, on a signal or after a time, at a step that all ranks agree on."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

import torch
from accelerate import Accelerator
from torch import Tensor

_SIGNALS = (signal.SIGUSR1, signal.SIGTERM)
_TIME_LIMIT = "run.max_minutes"
_CAUSES = (*(number.name for number in _SIGNALS), _TIME_LIMIT)  # a vote is an index plus one

# Signals belong to the process, so what came of them does too.
_received: set[str] = set()
_loaded = time.monotonic()


@contextmanager
def listening() -> Iterator[None]:
    """Take note of SIGUSR1 and SIGTERM instead of dying of them; SIGINT stays what it is."""
    _received.clear()
    earlier = {number: signal.signal(number, _take_note) for number in _SIGNALS}
    try:
        yield
    finally:
        for number, handler in earlier.items():
            signal.signal(number, handler)


def _take_note(number: int, _frame: FrameType | None) -> None:
    _received.add(signal.Signals(number).name)


class StopVote:
    """Lets the ranks agree, once a step, whether to stop after it.

    The votes travel before the work of the step and are read after it was handed to the device,
    so that the host never waits for what the step computes.

    Args:
        accelerator: Of the run.
        max_minutes: Since the program was loaded; None for no limit.
    """

    def __init__(self, accelerator: Accelerator, max_minutes: float | None) -> None:
        self._device = accelerator.device
        self._alone = accelerator.num_processes == 1
        self._deadline = None if max_minutes is None else _loaded + 60.0 * max_minutes
        self._vote = torch.zeros(())
        self._read: torch.cuda.Event | None = None

    def cast(self) -> None:
        """Begin the vote of a step; every rank must call it."""
        if self._alone:
            return
        vote: Tensor = torch.full((), self._wish(), device=self._device)
        torch.distributed.all_reduce(vote, op=torch.distributed.ReduceOp.MAX)
        self._vote = vote.to("cpu", non_blocking=True)
        if self._device.type == "cuda":
            self._read = torch.cuda.Event()
            self._read.record()

    def result(self) -> str | None:
        """Why all ranks stop after this step; None to go on. The same on every rank."""
        if self._read is not None:
            self._read.synchronize()
        vote = self._wish() if self._alone else int(self._vote)
        return _CAUSES[vote - 1] if vote else None

    def _wish(self) -> int:
        for index, cause in enumerate(_CAUSES):
            if cause in _received:
                return index + 1
        overdue = self._deadline is not None and time.monotonic() >= self._deadline
        return len(_CAUSES) if overdue else 0
