"""Signals that ask a run to stop: recorded while it trains; before that they end the process.

Before the first step there is nothing to save, and a process may wait long for something that no
signal interrupts. This module imports little, so that `listening` can begin before the imports that
take long.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from types import FrameType

from trainer.errors import INTERRUPTED, STOPPED
from trainer.monitoring.status import note_stop

SIGNALS = (signal.SIGUSR1, signal.SIGTERM)
_FOR_INTERRUPT = 1.0  # seconds in which KeyboardInterrupt may end a process
_FOR_LAST_WORDS = 1.0  # seconds for the message and the status, which a file system may hold up

# Signals are sent to the process, so the names of those received are kept for the process.
received: set[str] = set()
_deferred = threading.Event()
_end: Callable[[int], None] | None = None
_undo: list[Callable[[], None]] = []


@contextmanager
def listening(end: Callable[[int], None] | None = None) -> Iterator[None]:
    """Record SIGUSR1 and SIGTERM, which would end the process; SIGINT is handled as before.

    Args:
        end: Called in a thread with the number of a signal, SIGINT too, that arrives while signals
            are not deferred; it must end the process. Without it they are only recorded.
    """
    global _end
    received.clear()
    _deferred.clear()
    _end = end
    earlier = {number: signal.signal(number, _record_signal) for number in SIGNALS}
    # The C handler of a signal writes its number at once, wherever the main thread is.
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    wakeup = signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    threading.Thread(target=_watch, args=(reader,), name="signals", daemon=True).start()
    try:
        yield
    finally:
        signal.set_wakeup_fd(wakeup)
        os.close(writer)  # the thread reads the end of the pipe, and ends
        _end = None
        for number, handler in earlier.items():
            signal.signal(number, handler)


def _leave_pipe() -> None:
    """Keep the signals of a forked process, such as one of the loader, to itself."""
    with suppress(ValueError):  # not the main thread
        signal.set_wakeup_fd(-1)


os.register_at_fork(after_in_child=_leave_pipe)


def defer_signals() -> None:
    """From now on record signals for the votes: the run is training, or is ending by itself."""
    _deferred.set()


def stop_at_once() -> None:
    """From now on, and for what was recorded, end the process on a signal: a run is started."""
    _deferred.clear()
    for number in SIGNALS:
        if _end is not None and number.name in received:
            _end(number)


@contextmanager
def undoing(undo: Callable[[], None]) -> Iterator[None]:
    """Call `undo` if a signal ends the start in the block, where no `finally` is reached."""
    _undo.append(undo)
    try:
        yield
    finally:
        _undo.remove(undo)


def _record_signal(number: int, _frame: FrameType | None) -> None:
    received.add(signal.Signals(number).name)


def _watch(reader: int) -> None:
    """Call `_end` for signals that are not deferred, until the pipe is closed."""
    numbers = (*SIGNALS, signal.SIGINT)
    while data := os.read(reader, 64):
        found = next((number for number in numbers if number in data), None)
        if found is None:
            continue
        if found == signal.SIGINT:
            _deferred.wait(_FOR_INTERRUPT)
        if _end is not None and not _deferred.is_set():
            _end(found)
    os.close(reader)


def end_start(number: int, say: Callable[[str], None]) -> None:
    """End this process, which has not trained in this start; from any of its threads.

    The exit code is 128 plus the signal's number. Other processes of the run lose their
    connections, or are stopped by the launcher.

    Args:
        number: Of the signal.
        say: Prints a message if no other process has; it may take its time.
    """
    name = signal.Signals(number).name
    message = f"stopped by {name} before the first step of this start; nothing was lost"
    if number == signal.SIGTERM and int(os.environ.get("WORLD_SIZE", "1")) > 1:
        message += " (a launcher sends it, too, when another process has ended)"
    # The status is written before the folder is released: the next start may wait for it.
    last: list[Callable[[], None]] = [partial(say, message), partial(note_stop, name), *_undo]
    for last_words in last:
        thread = threading.Thread(target=last_words, daemon=True)
        thread.start()
        thread.join(_FOR_LAST_WORDS / len(last))
    for child in multiprocessing.active_children():  # they have no state to lose
        child.kill()
    os._exit(INTERRUPTED if number == signal.SIGINT else STOPPED + number)
