"""Send the heartbeats of this process, and end it when it makes no progress or is orphaned."""

from __future__ import annotations

import faulthandler
import logging
import os
import sys
import threading
import time
from collections.abc import Callable

import torch.distributed as dist

from trainer.errors import first_line
from trainer.health.peers import HEARTBEAT_SECONDS, Peers

logger = logging.getLogger(__name__)

_GRACE = 30.0  # seconds more, in which a process may end by itself, or Python may come to run

# The activity belongs to the whole process, so any module may report it.
_progress: tuple[str, float] = ("starting", time.monotonic())


def report_progress(activity: str) -> None:
    """Report what this process begins to do, as in `step 5, training`; each call is progress."""
    global _progress
    _progress = (activity, time.monotonic())


def current_activity() -> str:
    """Return the activity that was reported last."""
    return _progress[0]


class Watchdog:
    """Two threads beside the training: one uses the store, whose calls may not return.

    Args:
        fail: Called with a message if the process makes no progress, has lost its launcher, or
            still runs long after another has failed; it must end the process.
    """

    def __init__(self, fail: Callable[[str], None]) -> None:
        self.peers: Peers | None = None
        self._fail = fail
        self._stall_seconds = 0.0
        self._report_after: float | None = None
        self._stop = threading.Event()
        self._parent = os.getppid()
        self._threads: list[threading.Thread] = []

    def start(self, stall_seconds: float, report_after: float | None = None) -> None:
        """Start the threads, after the process group was made.

        Args:
            stall_seconds: Seconds that the process may take without progress.
            report_after: Seconds that it may wait for other ranks, where a collective that times
                out ends the process without an error that could be caught, as with NCCL.

        Raises:
            torch.distributed.DistError: The group's store cannot be reached.
        """
        report_progress("starting")
        self._stall_seconds, self._report_after = stall_seconds, report_after
        if dist.is_initialized() and dist.get_world_size() > 1:
            self.peers = Peers()
            self.peers.send_heartbeat(current_activity())
        for run in (self._check_regularly, self._send_heartbeats):
            self._threads.append(threading.Thread(target=run, daemon=True))
            self._threads[-1].start()

    def stop(self) -> None:
        """Stop the threads."""
        self._stop.set()
        for thread in self._threads:
            thread.join(2 * HEARTBEAT_SECONDS)
        if self._threads:
            faulthandler.cancel_dump_traceback_later()

    def _check_regularly(self) -> None:
        while not self._stop.is_set():
            # Set again in each turn: it takes effect only if this thread cannot run.
            faulthandler.dump_traceback_later(self._stall_seconds + _GRACE, exit=True, file=2)
            self._check()
            self._stop.wait(HEARTBEAT_SECONDS)

    def _send_heartbeats(self) -> None:
        answered = True
        while self.peers is not None and not self._stop.is_set():
            try:
                self.peers.send_heartbeat(current_activity())
                answered = True
            except RuntimeError as error:  # the run goes on while its collectives do
                if answered:
                    logger.warning("the rendezvous host does not answer: %s", first_line(error))
                answered = False
            self._stop.wait(HEARTBEAT_SECONDS)

    def _check(self) -> None:
        if dist.is_initialized() and os.getppid() != self._parent:
            # Nothing else ends this process now, and another start may use its folder.
            self._fail(f"the launcher (process {self._parent}) has ended")
        failed = self.peers.failed_since if self.peers is not None else None
        if failed is not None and time.monotonic() - failed > _GRACE:
            self._fail("another rank has failed")  # and has reported the reason
        activity, since = _progress
        waited = time.monotonic() - since
        late = self._report_after is not None and waited > self._report_after
        if late and self.peers is not None:
            self._fail(f"lost contact with other ranks at {activity}: {_missing(self.peers)}")
        if waited > self._stall_seconds:
            faulthandler.dump_traceback(sys.stderr)
            self._fail(
                f"no progress for {self._stall_seconds:g} s (run.stall_seconds) at {activity}; the "
                "stacks are above"
            )


def _missing(peers: Peers) -> str:
    try:
        return peers.find_missing()
    except RuntimeError as error:
        return f"the rendezvous host does not answer either, {first_line(error)}"
