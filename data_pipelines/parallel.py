"""Apply one function to many items, in this process or in several."""

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
from dmtg.terminal import protect_output

Item = TypeVar("Item")
Result = TypeVar("Result")

_AHEAD = 8  # finished results per worker that may wait for a slower item before them
_REPORT_SECONDS = 0.2  # between two reports of the progress of workers


def _ignore(count: int) -> None:
    """Do nothing, outside of `mapped`."""


_report: Callable[[int], object] = _ignore


def add_progress(count: int) -> None:
    """Report that `count` further parts of an item are done; for functions that `mapped` calls."""
    _report(count)


@contextmanager
def mapped(
    function: Callable[[Item], Result],
    items: Iterable[Item],
    workers: int,
    on_progress: Callable[[int], object] = _ignore,
) -> Iterator[Iterator[Result]]:
    """Yield an iterator over the results in the order of the items; stop the workers on exit.

    Args:
        function: Picklable; it is sent to each worker once, with the objects it is bound to.
        items: Read one by one, a few ahead of the results.
        workers: Number of processes; 1 calls the function in this process.
        on_progress: Called in this process with the counts that the function passes to
            `add_progress`, several together, while the iterator is advanced.

    Raises:
        DataError: A worker was killed.
    """
    if workers == 1:
        with _reporting_to(on_progress):
            yield map(function, items)
        return
    # spawn, not fork: a forked child would copy locks held by other threads of the caller.
    context = multiprocessing.get_context("spawn")
    reader, writer = context.Pipe(duplex=False)
    progress = _Progress(context.Value("Q", 0), on_progress)
    executor = ProcessPoolExecutor(
        workers, context, _Worker.start, (function, reader, progress.total)
    )
    try:
        yield _results(executor, items, workers, progress)
    finally:
        writer.close()
        executor.shutdown()
        reader.close()


@contextmanager
def _reporting_to(report: Callable[[int], object]) -> Iterator[None]:
    global _report
    before, _report = _report, report
    try:
        yield
    finally:
        _report = before


class _Progress:
    """Report what the workers have added to a shared number.

    Args:
        total: The number, in memory that all processes share.
        on_progress: Called with what was added since the last call.
    """

    def __init__(self, total: Any, on_progress: Callable[[int], object]) -> None:  # noqa: ANN401
        self.total = total
        self._on_progress = on_progress
        self._reported = 0

    def report(self) -> None:
        """Report what is new."""
        # Without the lock, which a worker that was killed may hold for ever.
        new = self.total.get_obj().value - self._reported
        if new:
            self._reported += new
            self._on_progress(new)


def _results(
    executor: ProcessPoolExecutor, items: Iterable[Item], workers: int, progress: _Progress
) -> Iterator[Any]:
    """Yield the results in order, submitting an item only when a worker is free.

    Under Python 3.10 an executor with queued large items blocks forever after its workers died.
    """
    source = iter(items)
    pending: deque[Future[Any]] = deque()
    try:
        while True:
            running = [future for future in pending if not future.done()]
            free = min(workers - len(running), workers * _AHEAD - len(pending))
            started = [executor.submit(_Worker.work, item) for item in islice(source, free)]
            pending += started
            progress.report()
            if not pending:
                return
            if pending[0].done():
                yield pending.popleft().result()
            else:
                wait([*running, *started], _REPORT_SECONDS, return_when=FIRST_COMPLETED)
    except BrokenProcessPool as error:
        raise DataError(
            "a worker was killed (out of memory?); run the command again to continue"
        ) from error


class _Worker:
    """The state of a worker process: the function to apply."""

    function: Callable[[Any], Any]

    @classmethod
    def start(cls, function: Callable[[Any], Any], parent: Connection, total: Any) -> None:  # noqa: ANN401
        global _report

        def add(count: int) -> None:
            with total.get_lock():
                total.value += count

        protect_output()
        cls.function = staticmethod(function)
        _report = add
        Thread(target=_exit_with_parent, args=(parent,), daemon=True).start()

    @classmethod
    def work(cls, item: object) -> object:
        return cls.function(item)


def _exit_with_parent(parent: Connection) -> None:
    """Exit this process when the parent closes the pipe: it left its block or was killed."""
    parent.poll(None)
    os._exit(1)
