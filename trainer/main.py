"""Train: learn which tasks share an encoder, and the weights, in one run.

One process:    python trainer/main.py --config experiments/demo.yaml
Several:        accelerate launch --config_file accelerate_configs/zero2.yaml \
                    trainer/main.py --config experiments/demo.yaml run.out=runs/first optim.lr=3e-4
Config only:    python trainer/main.py --config experiments/demo.yaml --print-config

`dmtg launch-files` prints the paths of this script and of the launch files where they are installed
from a wheel.

`dmtg train experiments/demo.yaml` is the short form of all of them.

Exit codes: 0 the run is complete, or was asked to stop (SIGUSR1, SIGTERM, run.max_minutes) and has
saved; 2 something that the user can change (configuration, data, folder, disk, memory, a library);
130 interrupted by Ctrl-C, saved after the first one; 128 + N signal N ended the run before its
first step; 1 the run failed otherwise. docs/failures.md has the details. `accelerate launch`
replaces the code of a failed script by 1.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

# Python puts the folder of a script on the path; the packages are in the folder above.
sys.path[0] = str(Path(__file__).resolve().parent.parent)

from dmtg.terminal import protect_output
from trainer.guarded import leave
from trainer.start import print_config, train


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


def main() -> None:
    """Run the command line and exit."""
    protect_output()
    arguments = parse_arguments()
    if arguments.print_config:
        sys.exit(print_config(arguments.config, arguments.overrides))
    leave(train(arguments.config, arguments.overrides))


if __name__ == "__main__":
    main()
