"""Signals that ask a run to stop: recorded while it trains; before that they end the process.

Before the first step there is nothing to save, and a process may wait long for something that no
signal interrupts. Ctrl-C while a run trains asks it to save and stop, a second one ends it at once.
This module imports little, so that `listening` can begin before the imports that take long.
"""

from __future__ import annotations

import _thread
import logging
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from types import FrameType

from trainer.errors import INTERRUPTED, STOPPED
from trainer.monitoring.status import note_stop

logger = logging.getLogger(__name__)

SIGNALS = (signal.SIGUSR1, signal.SIGTERM, signal.SIGINT)
# Seconds after the first SIGINT in which others are of the same Ctrl-C: a terminal sends it to the
# processes of its group, and their launcher forwards it to them.
_SAME_PRESS = 1.0
_FOR_INTERRUPT = 1.0  # seconds in which KeyboardInterrupt may end a process
_FOR_LAST_WORDS = 1.0  # seconds for the message and the status, which a file system may hold up

# Signals are sent to the process, so the names of those received are kept for the process.
received: set[str] = set()
_deferred = threading.Event()
_saved = threading.Event()
_again = threading.Event()
_pressed: float | None = None  # when the first SIGINT came that was deferred
_end: Callable[[int], None] | None = None
_undo: list[Callable[[], None]] = []


@contextmanager
def listening(end: Callable[[int], None] | None = None) -> Iterator[None]:
    """Record SIGUSR1 and SIGTERM, which would end the process, and SIGINT while it is deferred.

    SIGINT raises `KeyboardInterrupt` while signals are not deferred, and when it comes again.

    Args:
        end: Called in a thread with the number of a signal that arrives while signals are not
            deferred, and with that of a second Ctrl-C; it must end the process. Without it they are
            only recorded.
    """
    global _end, _pressed
    received.clear()
    for event in (_deferred, _saved, _again):
        event.clear()
    _end, _pressed = end, None
    # A shell lets the commands that it starts in the background ignore SIGINT.
    ignored = signal.getsignal(signal.SIGINT) == signal.SIG_IGN
    numbers = [number for number in SIGNALS if number != signal.SIGINT or not ignored]
    earlier = {number: signal.signal(number, _record_signal) for number in numbers}
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
        received.clear()  # another run of this process is not asked to stop
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


def end_saved() -> None:
    """From now on the run is saved and ends by itself; a launcher may send SIGTERM meanwhile."""
    _saved.set()


def stop_at_once() -> None:
    """From now on, and for what was recorded, end the process on a signal: a run is started."""
    _deferred.clear()
    for number in SIGNALS:
        if _end is not None and number.name in received:
            _end(number)


def interrupted_again() -> bool:
    """Return whether a second Ctrl-C ends the process, which has trained in this start."""
    return _again.is_set()


@contextmanager
def undoing(undo: Callable[[], None]) -> Iterator[None]:
    """Call `undo` if a signal ends the start in the block, where no `finally` is reached."""
    _undo.append(undo)
    try:
        yield
    finally:
        _undo.remove(undo)


def _record_signal(number: int, _frame: FrameType | None) -> None:
    if number == signal.SIGINT and (_again.is_set() or not _deferred.is_set()):
        raise KeyboardInterrupt
    received.add(signal.Signals(number).name)


def _watch(reader: int) -> None:
    """Call `_end` for signals that are not deferred, until the pipe is closed."""
    while data := os.read(reader, 64):
        if _deferred.is_set():
            for number in data:
                _count_press(number)
            continue
        found = next((number for number in SIGNALS if number in data), None)
        if found is None:
            continue
        if found == signal.SIGINT:
            _deferred.wait(_FOR_INTERRUPT)
        if _end is not None and not _deferred.is_set():
            _end(found)
    os.close(reader)


def _count_press(number: int) -> None:
    """Announce the save at the first Ctrl-C, and end the process at the second.

    At the second Ctrl-C a launcher sends SIGTERM.
    """
    global _pressed
    now = time.monotonic()
    if _pressed is None and number == signal.SIGINT:
        _pressed = now
        if os.environ.get("RANK", "0") == "0":
            logger.warning(
                "Ctrl-C: saving after this step; press it again to end at once without saving"
            )
    elif _pressed is None or now - _pressed < _SAME_PRESS or _again.is_set():
        return
    elif number == signal.SIGINT or (number == signal.SIGTERM and not _saved.is_set()):
        _again.set()
        if _end is not None:
            _end(signal.SIGINT)
        else:
            _thread.interrupt_main(signal.SIGINT)


def end_start(number: int, say: Callable[[str], None]) -> None:
    """End this process from any of its threads: it has not trained, or was interrupted twice.

    The exit code is 128 plus the signal's number. Other processes of the run lose their
    connections, or are stopped by the launcher.

    Args:
        number: Of the signal.
        say: Prints a message if no other process has; it may take its time.
    """
    name = signal.Signals(number).name
    message = f"stopped by {name} before the first step of this start; nothing was lost"
    if interrupted_again():
        message = (
            "interrupted twice, ended at once; run.resume=auto continues from the newest checkpoint"
        )
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
