"""Train: learn which tasks share an encoder, and the weights, in one run.

One process:    python trainer/main.py --config experiments/demo.yaml
Several:        accelerate launch --config_file accelerate_configs/zero2.yaml \
                    trainer/main.py --config experiments/demo.yaml run.out=runs/first optim.lr=3e-4
Config only:    python trainer/main.py --config experiments/demo.yaml --print-config

`dmtg launch-files` prints the paths of this script and of the launch files where they are installed
from a wheel.

Exit codes: 0 the run is complete, or was asked to stop (SIGUSR1, SIGTERM, run.max_minutes) and has
saved; 2 something that the user can change (configuration, data, folder, disk, memory, a library);
130 interrupted; 128 + N signal N ended the run before its first step; 1 the run failed otherwise.
docs/failures.md has the details. `accelerate launch` replaces the code of a failed script by 1.
"""

from __future__ import annotations

import argparse
import logging
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

# Python puts the folder of a script on the path; the packages are in the folder above.
sys.path[0] = str(Path(__file__).resolve().parent.parent)

from dmtg.terminal import protect_output
from trainer.errors import Preempted, report_error
from trainer.health.stop_signals import end_start, listening

if TYPE_CHECKING:
    from trainer.config.config import Config
    from trainer.health.watchdog import Watchdog

logger = logging.getLogger("trainer")


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--config", type=Path, required=True, help="YAML file of the run")
    parser.add_argument(
        "--print-config", action="store_true", help="print the resolved configuration and stop"
    )
    parser.add_argument("overrides", nargs="*", metavar="section.key=value")
    parsed, unknown = parser.parse_known_args(arguments)
    if unknown:
        hint = f"; an override has no dashes: {unknown[0].lstrip('-')}" if "." in unknown[0] else ""
        parser.error(f"unknown arguments: {' '.join(unknown)}{hint}")
    return parsed


def run(config: Config, watchdog: Watchdog) -> None:
    """Train from the beginning, or from the newest checkpoint, to the end.

    Raises:
        UserError, DataError: Something the user gave cannot be used.
        NonFiniteLossError: Training diverged.
    """
    from trainer.engines.accelerator import make_accelerator
    from trainer.run import train_run

    accelerator = make_accelerator(config)
    # NCCL ends a process that waits too long; report it before.
    late = 0.9 * config.run.timeout_seconds if accelerator.device.type == "cuda" else None
    watchdog.start(config.run.stall_seconds, late)
    try:
        train_run(config, accelerator)
    except Preempted as stop:
        logger.info("%s", stop)
    accelerator.end_training()


def train(source: Path, overrides: Sequence[str]) -> int:
    """Load the configuration, train, and return the exit code; errors are reported."""
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
            return _train(source, overrides, watchdogs)
        except (Exception, KeyboardInterrupt) as error:  # in an import
            return report_error(error)


def _train(source: Path, overrides: Sequence[str], watchdogs: list[Watchdog]) -> int:
    """Train with a watchdog, which is put into the list, and return the exit code."""
    from trainer.config.loading import load_config
    from trainer.health.failures import fail, report
    from trainer.health.watchdog import Watchdog
    from trainer.monitoring.logs import setup_logging

    setup_logging(int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1")))
    watchdog = Watchdog(lambda message: fail(message, watchdog.peers))
    watchdogs.append(watchdog)
    try:
        run(load_config(source, overrides), watchdog)
    except (Exception, KeyboardInterrupt) as error:
        return report(error, watchdog.peers)
    finally:
        watchdog.stop()
    return 0


def print_config(source: Path, overrides: Sequence[str]) -> int:
    """Print the resolved configuration and return the exit code."""
    try:
        from trainer.config.loading import load_config

        sys.stdout.write(load_config(source, overrides).to_yaml())
        sys.stdout.flush()
    except (Exception, KeyboardInterrupt) as error:
        return report_error(error)
    return 0


def main() -> None:
    """Run the command line and exit."""
    protect_output()
    arguments = parse_arguments()
    if arguments.print_config:
        sys.exit(print_config(arguments.config, arguments.overrides))
    code = train(arguments.config, arguments.overrides)
    from trainer.health.failures import leave

    leave(code)


if __name__ == "__main__":
    main()
