"""What the processes of a run tell each other outside the collectives, which may be what fails."""

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

BEAT = 1.0  # seconds between two signs of life
_SILENCE = 4 * BEAT  # without a beat for so long, a process is not alive or cannot be reached
_STORE_SECONDS = 5.0  # a store that is there answers in milliseconds
_FIRST = "failures/first"
_Answer = TypeVar("_Answer")


@dataclass(frozen=True)
class Life:
    """A sign of life.

    Attributes:
        beat: Counts up; two equal ones, read some time apart, mean that there was none between.
        host: Name of the node.
        doing: What the process does, in words.
    """

    beat: int
    host: str
    doing: str


def place() -> str:
    """Rank and node of this process, for messages."""
    rank, world_size = os.environ.get("RANK", "0"), os.environ.get("WORLD_SIZE", "1")
    return f"rank {rank} of {world_size} on {socket.gethostname()}"


class Peers:
    """The processes of the group, seen through its store, which lies in a launcher.

    Nothing here depends on clocks that agree: beats are counted, and each process measures the
    time between two looks by itself.

    Attributes:
        failed_since: When this process learned that one has failed, on its own monotonic clock.

    Raises:
        torch.distributed.DistError: The store cannot be reached; also raised by the methods.
    """

    failed_since: float | None = None

    def __init__(self) -> None:
        # Of its own, since a connection serves one call at a time, and waiting may be one.
        store: Any = dist.distributed_c10d._get_default_store()
        self._store = store.clone()
        self._rank, self._world_size = dist.get_rank(), dist.get_world_size()
        self._host = socket.gethostname()
        self._beat = 0

    def beat(self, doing: str) -> None:
        """Give a sign of life, and look whether a process has failed; it may never return."""
        self._beat += 1
        life = asdict(Life(self._beat, self._host, doing))
        self._store.set(f"life/{self._rank}", json.dumps(life))
        if self.failed_since is None and self._store.check([_FIRST]):
            self.failed_since = time.monotonic()

    def claim(self) -> bool:
        """Whether this process is the first of all to fail, and thus the one to say why."""
        own = str(self._rank)
        return _bounded(lambda: self._store.compare_set(_FIRST, "", own)).decode() == own

    def wait_for_failure(self, seconds: float) -> bool:
        """Whether a process has claimed its failure, at the latest after so many seconds."""
        end = time.monotonic() + seconds
        while not _bounded(lambda: self._store.check([_FIRST])):
            if time.monotonic() >= end:
                return False
            time.sleep(0.1)
        return True

    def find_missing(self) -> str:
        """What is known, after some seconds, of the processes that cannot take part."""
        before = _bounded(self._lives)
        time.sleep(_SILENCE)
        after = _bounded(self._lives)
        others = [rank for rank in range(self._world_size) if rank != self._rank]
        silent = [rank for rank in others if before[rank] == after[rank]]
        if silent:
            return "no sign of life from " + _listed(silent, after, "last seen at")
        deeds = [None if life is None else life.doing for life in after]
        elsewhere = [rank for rank in others if deeds[rank] != deeds[self._rank]]
        if elsewhere:
            return f"this rank was at {deeds[self._rank]}, " + _listed(elsewhere, after, "at")
        return "all ranks give signs of life"

    def _lives(self) -> list[Life | None]:
        keys = [f"life/{rank}" for rank in range(self._world_size)]
        if self._store.check(keys):  # the usual case, in one call
            return [Life(**json.loads(value)) for value in self._store.multi_get(keys)]
        return [
            Life(**json.loads(self._store.get(key))) if self._store.check([key]) else None
            for key in keys
        ]


def _bounded(ask: Callable[[], _Answer]) -> _Answer:
    """The answer of the store, which has no limit of its own where the network swallows a request.

    Raises:
        torch.distributed.DistError: There is none.
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


def _listed(ranks: list[int], lives: list[Life | None], at: str) -> str:
    """Rank, node and whereabouts of some processes, the first few of many."""
    shown = []
    for rank in ranks[:4]:
        life = lives[rank]
        shown.append(f"rank {rank} on {life.host} {at} {life.doing}" if life else f"rank {rank}")
    more = f" and {len(ranks) - 4} more" if len(ranks) > 4 else ""
    return ", ".join(shown) + more
