"""One start of a run as a command: what `trainer/main.py` and `dmtg train` print and return.

This module imports little, as `trainer.guarded`.
"""

from __future__ import annotations

import gc
import logging
import os
import shlex
import sys
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

from dmtg.terminal import shown
from trainer.errors import INTERRUPT, INTERRUPTED, Preempted, report_error
from trainer.guarded import run_guarded

if TYPE_CHECKING:
    from trainer.health.watchdog import Watchdog

logger = logging.getLogger("trainer")

# The options with which `dmtg train` has started several processes, to name the next command.
LAUNCH_OPTIONS = "DMTG_TRAIN_OPTIONS"


def train(source: Path, overrides: Sequence[str]) -> int:
    """Load the configuration, train, and return the exit code; errors are reported."""

    def run(watchdog: Watchdog) -> int:
        from trainer.api import Trainer

        trainer = Trainer(source, overrides)
        _freeze_modules()
        try:
            result = trainer.train_here(watchdog)
        except Preempted as stop:
            logger.info("%s", stop)
            _write(f"continue: {_continued(source, overrides)}")
            return INTERRUPTED if stop.cause == INTERRUPT else 0
        _write("", str(result))
        return 0

    return run_guarded(run)


def print_config(source: Path, overrides: Sequence[str]) -> int:
    """Print the resolved configuration and return the exit code."""
    try:
        from trainer.config.loading import load_config

        sys.stdout.write(load_config(source, overrides).to_yaml())
        sys.stdout.flush()
    except (Exception, KeyboardInterrupt) as error:
        return report_error(error)
    return 0


def _freeze_modules() -> None:
    """Exclude what a run imports from garbage collection: a million objects that stay."""
    import_module("trainer.run")
    gc.freeze()


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
