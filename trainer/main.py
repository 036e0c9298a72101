"""Train: learn which tasks share an encoder, and the weights, in one run.

One process:    python trainer/main.py --config experiments/demo.yaml
Several:        accelerate launch --config_file accelerate_configs/zero2.yaml \
                    trainer/main.py --config experiments/demo.yaml run.out=runs/first optim.lr=3e-4
Only look:      python trainer/main.py --config experiments/demo.yaml --print-config

Exit codes: 0 the run is complete, or was asked to stop (SIGUSR1, SIGTERM, run.max_minutes) and has
saved; 2 the configuration, data or folder cannot be used; 1 otherwise. With `accelerate launch` a
failed script's code reaches the shell as 1.
"""

from __future__ import annotations

import argparse
import logging
import os
import sys
from pathlib import Path

# Run as a script, Python puts this folder on the path; the packages lie one above.
sys.path[0] = str(Path(__file__).resolve().parent.parent)

from trainer.config.config import Config
from trainer.config.loading import load_config
from trainer.health.failures import fail, leave, report
from trainer.health.preemption import Preempted, listening
from trainer.health.watchdog import Watchdog
from trainer.monitoring.logs import setup_logging

logger = logging.getLogger("trainer")


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--config", type=Path, required=True, help="YAML file of the run")
    parser.add_argument("--print-config", action="store_true", help="show the config and stop")
    parser.add_argument("overrides", nargs="*", metavar="section.key=value")
    return parser.parse_args(arguments)


def run(config: Config, watchdog: Watchdog) -> None:
    """Train from start, or from the newest checkpoint, to the end.

    Raises:
        UserError, DataError: Something the user gave cannot be used.
        NonFiniteLossError: Training diverged.
    """
    from trainer.engines.accelerator import make_accelerator
    from trainer.run import train_run

    accelerator = make_accelerator(config)
    # NCCL ends a process that waits too long by itself: this is to be said before.
    late = 0.9 * config.run.timeout_seconds if accelerator.device.type == "cuda" else None
    watchdog.start(config.run.stall_seconds, late)
    try:
        train_run(config, accelerator)
    except Preempted as stop:
        logger.info("%s", stop)
    accelerator.end_training()


def main() -> int:
    """Run the command line and return the exit code."""
    setup_logging(int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1")))
    arguments = parse_arguments()
    watchdog = Watchdog(lambda message: fail(message, watchdog.peers))
    # A launcher ends the others with SIGTERM when one has failed: they listen while they report.
    with listening():
        try:
            config = load_config(arguments.config, arguments.overrides)
            if arguments.print_config:
                sys.stdout.write(config.to_yaml())
            else:
                run(config, watchdog)
        except (Exception, KeyboardInterrupt) as error:
            return report(error, watchdog.peers)
        finally:
            watchdog.stop()
    return 0


if __name__ == "__main__":
    leave(main())
