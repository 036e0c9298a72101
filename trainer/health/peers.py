"""Heartbeats and the first failure of all processes, through the store of the process group.

They do not use collectives, because a collective may be what fails.
"""

from __future__ import annotations

import json
import os
import socket
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from queue import Empty, SimpleQueue
from threading import Thread
from typing import Any, TypeVar

import torch.distributed as dist

HEARTBEAT_SECONDS = 1.0  # between two heartbeats of a process
# A process without a heartbeat for so long has ended, is stopped, or cannot be reached.
_SILENT_SECONDS = 4 * HEARTBEAT_SECONDS
_STORE_SECONDS = 5.0  # a store that can be reached answers in milliseconds
_FIRST_FAILURE = "failures/first"
_Answer = TypeVar("_Answer")


@dataclass(frozen=True)
class Heartbeat:
    """The last heartbeat of a process.

    Attributes:
        number: Count of heartbeats; two equal numbers, read some time apart, mean that there was
            no heartbeat between.
        host: Name of the node.
        activity: What the process does, as in `step 5, training`.
    """

    number: int
    host: str
    activity: str


def place() -> str:
    """Return rank and node of this process, for messages."""
    rank, world_size = os.environ.get("RANK", "0"), os.environ.get("WORLD_SIZE", "1")
    return f"rank {rank} of {world_size} on {socket.gethostname()}"


class Peers:
    """The processes of the group, through its store, which a launcher holds.

    The clocks of the nodes need not agree: heartbeats are counted, and each process measures the
    time between two reads with its local clock.

    Attributes:
        failed_since: When this process read that one has failed, on its monotonic clock.

    Raises:
        torch.distributed.DistError: The store cannot be reached; also raised by the methods.
    """

    failed_since: float | None = None

    def __init__(self) -> None:
        # A separate connection: each serves one call at a time, and a call may wait.
        store: Any = dist.distributed_c10d._get_default_store()
        self._store = store.clone()
        self._rank, self._world_size = dist.get_rank(), dist.get_world_size()
        self._host = socket.gethostname()
        self._heartbeats = 0

    def send_heartbeat(self, activity: str) -> None:
        """Send a heartbeat, and read whether a process has failed; it may never return."""
        self._heartbeats += 1
        heartbeat = asdict(Heartbeat(self._heartbeats, self._host, activity))
        self._store.set(_key(self._rank), json.dumps(heartbeat))
        if self.failed_since is None and self._store.check([_FIRST_FAILURE]):
            self.failed_since = time.monotonic()

    def first_failure(self) -> bool:
        """Register a failure of this process; return whether it is the first of all processes."""
        rank = str(self._rank)
        first = _bounded(lambda: self._store.compare_set(_FIRST_FAILURE, "", rank))
        return first.decode() == rank

    def wait_for_failure(self, seconds: float) -> bool:
        """Return whether a process registers a failure within so many seconds."""
        end = time.monotonic() + seconds
        while not _bounded(lambda: self._store.check([_FIRST_FAILURE])):
            if time.monotonic() >= end:
                return False
            time.sleep(0.1)
        return True

    def find_missing(self) -> str:
        """Describe the processes that send no heartbeats or do something else than this one."""
        before = _bounded(self._read_heartbeats)
        time.sleep(_SILENT_SECONDS)
        after = _bounded(self._read_heartbeats)
        others = [rank for rank in range(self._world_size) if rank != self._rank]
        silent = [rank for rank in others if before[rank] == after[rank]]
        if silent:
            return "no heartbeat from " + _listed(silent, after, "last seen at")
        activities = [None if heartbeat is None else heartbeat.activity for heartbeat in after]
        elsewhere = [rank for rank in others if activities[rank] != activities[self._rank]]
        if elsewhere:
            return f"this rank was at {activities[self._rank]}, " + _listed(elsewhere, after, "at")
        return "all ranks send heartbeats"

    def _read_heartbeats(self) -> list[Heartbeat | None]:
        keys = [_key(rank) for rank in range(self._world_size)]
        if self._store.check(keys):  # the usual case, in one call
            return [Heartbeat(**json.loads(value)) for value in self._store.multi_get(keys)]
        return [
            Heartbeat(**json.loads(self._store.get(key))) if self._store.check([key]) else None
            for key in keys
        ]


def _key(rank: int) -> str:
    return f"heartbeats/{rank}"


def _bounded(ask: Callable[[], _Answer]) -> _Answer:
    """Return the answer of the store, whose calls may wait without end if packets are dropped.

    Raises:
        torch.distributed.DistError: There is no answer in time.
    """
    answers: SimpleQueue[_Answer | RuntimeError] = SimpleQueue()

    def run() -> None:
        try:
            answers.put(ask())
        except RuntimeError as error:
            answers.put(error)

    Thread(target=run, daemon=True).start()
    try:
        answer = answers.get(timeout=_STORE_SECONDS)
    except Empty:
        raise dist.DistStoreError(f"no answer in {_STORE_SECONDS:g} s") from None
    if isinstance(answer, RuntimeError):
        raise answer
    return answer


def _listed(ranks: list[int], heartbeats: list[Heartbeat | None], at: str) -> str:
    """Return rank, node and activity of the first few of some processes."""
    shown = []
    for rank in ranks[:4]:
        last = heartbeats[rank]
        shown.append(f"rank {rank} on {last.host} {at} {last.activity}" if last else f"rank {rank}")
    more = f" and {len(ranks) - 4} more" if len(ranks) > 4 else ""
    return ", ".join(shown) + more
