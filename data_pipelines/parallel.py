"""One function over many items, in this process or in several."""

from __future__ import annotations

import multiprocessing
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from itertools import islice
from multiprocessing.connection import Connection
from threading import Thread
from typing import Any, TypeVar

from data_pipelines.errors import DataError

Item = TypeVar("Item")
Result = TypeVar("Result")

_AHEAD = 8  # results of a worker that may wait for a slow item before them


@contextmanager
def mapped(
    function: Callable[[Item], Result], items: Iterable[Item], workers: int
) -> Iterator[Iterator[Result]]:
    """Gives the function's results in the order of the items; leaving the block ends the work.

    Args:
        function: What to do; a worker gets one copy, so what it is bound to travels once.
        items: Taken one after the other, a few ahead of the results.
        workers: Processes; 1 works in this one.

    Raises:
        DataError: A worker was killed.
    """
    if workers == 1:
        yield map(function, items)
        return
    # Spawned, not forked: the caller may hold threads, which a fork would leave locked.
    context = multiprocessing.get_context("spawn")
    reader, writer = context.Pipe(duplex=False)
    executor = ProcessPoolExecutor(workers, context, _Worker.start, (function, reader))
    try:
        yield _results(executor, items, workers)
    finally:
        writer.close()
        executor.shutdown()
        reader.close()


def _results(executor: ProcessPoolExecutor, items: Iterable[Item], workers: int) -> Iterator[Any]:
    """Hands out no item without a free worker: under Python 3.10 the executor would wait for ever
    to pass on a large one after its workers' death."""
    source = iter(items)
    pending: deque[Future[Any]] = deque()
    try:
        while True:
            running = [future for future in pending if not future.done()]
            free = min(workers - len(running), workers * _AHEAD - len(pending))
            started = [executor.submit(_Worker.work, item) for item in islice(source, free)]
            pending += started
            if not pending:
                return
            if pending[0].done():
                yield pending.popleft().result()
            else:
                wait([*running, *started], return_when=FIRST_COMPLETED)
    except BrokenProcessPool as error:
        raise DataError(
            "a worker was killed (out of memory?); run the command again to continue"
        ) from error


class _Worker:
    """What a worker process holds."""

    function: Callable[[Any], Any]

    @classmethod
    def start(cls, function: Callable[[Any], Any], life_line: Connection) -> None:
        cls.function = staticmethod(function)
        Thread(target=_end_with, args=(life_line,), daemon=True).start()

    @classmethod
    def work(cls, item: object) -> object:
        return cls.function(item)


def _end_with(life_line: Connection) -> None:
    """Ends this process at once when the other end closes: the parent left its block, or died."""
    life_line.poll(None)
    os._exit(1)
