"""Train as a process of its own, or as one of several: signals, watchdog, one message, exit code.

This module imports little, so that signals are handled before the imports that take long.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, NoReturn

from trainer.errors import report_error
from trainer.health.stop_signals import end_start, listening

if TYPE_CHECKING:
    from trainer.health.watchdog import Watchdog


def run_guarded(run: Callable[[Watchdog], int]) -> int:
    """Call a function that trains, and return its exit code or that of its error.

    Args:
        run: Gets a watchdog, which it has to start.
    """
    watchdogs: list[Watchdog] = []

    def say(message: str) -> None:
        if watchdogs:
            from trainer.health.failures import say_once

            say_once(message, watchdogs[0].peers)
        elif os.environ.get("LOCAL_RANK", "0") == "0":
            sys.stderr.write(f"error: {message}\n")

    # When one process fails, the launcher sends SIGTERM to the others, which must still report.
    with listening(lambda number: end_start(number, say)):
        try:
            return _watched(run, watchdogs)
        except (Exception, KeyboardInterrupt) as error:  # in an import
            return report_error(error)


def _watched(run: Callable[[Watchdog], int], watchdogs: list[Watchdog]) -> int:
    """Call a function with a watchdog, which is put into the list, and report its errors."""
    from trainer.health.failures import fail, report
    from trainer.health.watchdog import Watchdog
    from trainer.monitoring.logs import setup_logging

    setup_logging(int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1")))
    watchdog = Watchdog(lambda message: fail(message, watchdog.peers))
    watchdogs.append(watchdog)
    try:
        return run(watchdog)
    except (Exception, KeyboardInterrupt) as error:
        return report(error, watchdog.peers)
    finally:
        watchdog.stop()


def leave(code: int) -> NoReturn:
    """End this process with an exit code, and the processes that read its data."""
    from trainer.health.failures import leave

    leave(code)
    raise AssertionError("it has ended the process")
