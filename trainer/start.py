"""One start of a run as a command: its messages, watchdog and exit code.

`trainer/main.py` and `dmtg train` end with the codes of `docs/failures.md`. This module imports
little, so that signals are handled before the imports that take long.
"""

from __future__ import annotations

import logging
import os
import shlex
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from dmtg.terminal import shown
from trainer.errors import INTERRUPT, INTERRUPTED, Preempted, report_error
from trainer.health.stop_signals import end_start, listening

if TYPE_CHECKING:
    from trainer.api import Trainer
    from trainer.health.watchdog import Watchdog
    from trainer.results.result import RunResult

logger = logging.getLogger("trainer")

# The options with which `dmtg train` has started several processes, to name the next command.
LAUNCH_OPTIONS = "DMTG_TRAIN_OPTIONS"


def train(source: Path, overrides: Sequence[str]) -> int:
    """Load the configuration, train, and return the exit code; errors are reported."""
    watchdogs: list[Watchdog] = []

    def run(watchdog: Watchdog) -> int:
        from trainer.api import Trainer

        trainer = Trainer(source, overrides)
        try:
            result = trainer.train_here(watchdog)
        except Preempted as stop:
            logger.info("%s", stop)
            _write(f"continue: {_continued(source, overrides)}")
            return INTERRUPTED if stop.cause == INTERRUPT else 0
        _write("", str(result))
        return 0

    # When one process fails, the launcher sends SIGTERM to the others, which must still report.
    with listening(lambda number: end_start(number, lambda text: _say(text, watchdogs))):
        try:
            return _watched(run, watchdogs)
        except (Exception, KeyboardInterrupt) as error:  # in an import
            return report_error(error)


def train_guarded(trainer: Trainer) -> RunResult:
    """Train as one of several processes; a failure ends this process as that of the command.

    Returns:
        The result, unless the process is ended.
    """
    watchdogs: list[Watchdog] = []
    results: list[RunResult] = []

    def run(watchdog: Watchdog) -> int:
        try:
            results.append(trainer.train_here(watchdog))
        except Preempted as stop:
            logger.info("%s", stop)
            if stop.cause == INTERRUPT:
                return INTERRUPTED
            results.append(trainer.stopped_result(stop))
        return 0

    with listening(lambda number: end_start(number, lambda text: _say(text, watchdogs))):
        code = _watched(run, watchdogs)
    if not results:
        leave(code)
    return results[0]


def print_config(source: Path, overrides: Sequence[str]) -> int:
    """Print the resolved configuration and return the exit code."""
    try:
        from trainer.config.loading import load_config

        sys.stdout.write(load_config(source, overrides).to_yaml())
        sys.stdout.flush()
    except (Exception, KeyboardInterrupt) as error:
        return report_error(error)
    return 0


def leave(code: int) -> NoReturn:
    """End this process with an exit code, and the processes that read its data."""
    from trainer.health.failures import leave

    leave(code)
    raise AssertionError("it has ended the process")


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


def _say(message: str, watchdogs: list[Watchdog]) -> None:
    """Print why a signal ends this process, if no other process has."""
    if watchdogs:
        from trainer.health.failures import say_once

        say_once(message, watchdogs[0].peers)
    elif os.environ.get("LOCAL_RANK", "0") == "0":
        sys.stderr.write(f"error: {message}\n")


def _continued(source: Path, overrides: Sequence[str]) -> str:
    """Return the command that continues a run."""
    launched = int(os.environ.get("WORLD_SIZE", "1")) > 1
    if launched and LAUNCH_OPTIONS not in os.environ:
        return "start it as before, with run.resume=auto"
    kept = [text for text in overrides if not text.startswith("run.resume=")]
    options = shlex.split(os.environ.get(LAUNCH_OPTIONS, ""))
    return shlex.join(["dmtg", "train", str(source), *kept, "run.resume=auto", *options])


def _write(*lines: str) -> None:
    """Print lines on the main process."""
    if os.environ.get("RANK", "0") == "0":
        for line in lines:
            sys.stdout.write(f"{shown(line)}\n")
        sys.stdout.flush()
