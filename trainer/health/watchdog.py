"""Watches over this process: tells the others that it lives, and ends it where it must."""

from __future__ import annotations

import faulthandler
import logging
import os
import sys
import threading
import time
from collections.abc import Callable

import torch.distributed as dist

from trainer.health.peers import BEAT, Peers

logger = logging.getLogger(__name__)

_LONG = 160  # characters of an error in a message
_GRACE = 30.0  # seconds more, in which a process may end by itself, or Python may come to run

# What a process does is known to the whole process, from wherever it is noted.
_doing: tuple[str, float] = ("starting", time.monotonic())


def note(doing: str) -> None:
    """Say what this process begins to do; each call is progress."""
    global _doing
    _doing = (doing, time.monotonic())


def doing() -> str:
    """What this process is doing."""
    return _doing[0]


class Watchdog:
    """Two threads beside the training: one talks with the store, which may not answer.

    Args:
        fail: Called with a message if the process stands still, has lost its launcher, or outlives
            the failure of another; it ends the process.
    """

    def __init__(self, fail: Callable[[str], None]) -> None:
        self.peers: Peers | None = None
        self._fail = fail
        self._stall_seconds = 0.0
        self._speaks_after: float | None = None
        self._stop = threading.Event()
        self._parent = os.getppid()
        self._threads: list[threading.Thread] = []

    def start(self, stall_seconds: float, speaks_after: float | None = None) -> None:
        """Begin, after the group of processes was made.

        Args:
            stall_seconds: How long the process may go without progress.
            speaks_after: How long it may wait for other ranks, where a collective that is late
                ends the process without an error that could be caught, as NCCL's do.

        Raises:
            torch.distributed.DistError: The group's store cannot be reached.
        """
        note("starting")
        self._stall_seconds, self._speaks_after = stall_seconds, speaks_after
        if dist.is_initialized() and dist.get_world_size() > 1:
            self.peers = Peers()
            self.peers.beat(doing())
        for run in (self._watch, self._beat):
            self._threads.append(threading.Thread(target=run, daemon=True))
            self._threads[-1].start()

    def stop(self) -> None:
        """Stop watching."""
        self._stop.set()
        for thread in self._threads:
            thread.join(2 * BEAT)
        if self._threads:
            faulthandler.cancel_dump_traceback_later()

    def _watch(self) -> None:
        while not self._stop.is_set():
            # Set anew at each turn; only a thread that cannot run lets it come to that.
            faulthandler.dump_traceback_later(self._stall_seconds + _GRACE, exit=True, file=2)
            self._look()
            self._stop.wait(BEAT)

    def _beat(self) -> None:
        heard = True
        while self.peers is not None and not self._stop.is_set():
            try:
                self.peers.beat(doing())
                heard = True
            except RuntimeError as error:  # the run goes on while its collectives do
                if heard:
                    logger.warning("the rendezvous host does not answer: %s", first_line(error))
                heard = False
            self._stop.wait(BEAT)

    def _look(self) -> None:
        if dist.is_initialized() and os.getppid() != self._parent:
            # Nobody would end this process any more, and another start may use its folder.
            self._fail(f"the launcher, process {self._parent}, is gone")
        failed = self.peers.failed_since if self.peers is not None else None
        if failed is not None and time.monotonic() - failed > _GRACE:
            self._fail("another rank has failed")  # which has said why
        what, since = _doing
        waited = time.monotonic() - since
        late = self._speaks_after is not None and waited > self._speaks_after
        if late and self.peers is not None:
            self._fail(f"lost contact with other ranks at {what}: {_missing(self.peers)}")
        if waited > self._stall_seconds:
            faulthandler.dump_traceback(sys.stderr)
            self._fail(
                f"no progress for {self._stall_seconds:g} s (run.stall_seconds) at {what}; the "
                "stacks are above"
            )


def _missing(peers: Peers) -> str:
    try:
        return peers.find_missing()
    except RuntimeError as error:
        return f"the rendezvous host does not answer either, {first_line(error)}"


def first_line(error: BaseException) -> str:
    """The begin of an error's message, which may go on with advice and a stack of C++ frames."""
    line = (str(error).splitlines() or [""])[0]
    return line if len(line) <= _LONG else f"{line[:_LONG]}..."
