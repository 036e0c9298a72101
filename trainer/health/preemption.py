"""Stop a run early, on a signal or after a time, at a step that all ranks agree on."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch
from accelerate import Accelerator
from torch import Tensor

from trainer.health.stop_signals import SIGNALS, received

_TIME_LIMIT = "run.max_minutes"
_CALLBACK = "a callback"
_SIGNALS = tuple(number.name for number in SIGNALS)
_CAUSES = (*_SIGNALS, _TIME_LIMIT, _CALLBACK)  # a vote is an index plus one

_loaded = time.monotonic()


class StopVote:
    """Lets the ranks agree in every step whether to stop after it.

    The votes are reduced before the step and read after the step was submitted to the device, so
    that the host does not wait for the results of the step.

    Args:
        accelerator: Of the run.
        max_minutes: Since the program was loaded; None for no limit.
        asked: Returns whether a callback of this process has asked to stop.
    """

    def __init__(
        self,
        accelerator: Accelerator,
        max_minutes: float | None,
        asked: Callable[[], bool] = lambda: False,
    ) -> None:
        self._device = accelerator.device
        self._alone = accelerator.num_processes == 1
        self._asked = asked
        self._deadline = None if max_minutes is None else _loaded + 60.0 * max_minutes
        self._vote = torch.zeros(())
        self._read: torch.cuda.Event | None = None

    def cast(self) -> None:
        """Start the vote of a step; every rank must call it."""
        if self._alone:
            return
        vote: Tensor = torch.full((), self._local_vote(), device=self._device)
        torch.distributed.all_reduce(vote, op=torch.distributed.ReduceOp.MAX)
        self._vote = vote.to("cpu", non_blocking=True)
        if self._device.type == "cuda":
            self._read = torch.cuda.Event()
            self._read.record()

    def result(self) -> str | None:
        """Return why all ranks stop after this step, the same on every rank; None to continue."""
        if self._read is not None:
            self._read.synchronize()
        vote = self._local_vote() if self._alone else int(self._vote)
        return _CAUSES[vote - 1] if vote else None

    def _local_vote(self) -> int:
        cause = next((name for name in _SIGNALS if name in received), None)
        if cause is None and self._deadline is not None and time.monotonic() >= self._deadline:
            cause = _TIME_LIMIT
        if cause is None and self._asked():
            cause = _CALLBACK
        return 0 if cause is None else _CAUSES.index(cause) + 1
