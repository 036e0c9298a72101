"""Trains several runs one after the other in the same processes, which start only once.

Usage: train_cells.py CONFIG OUT 'NAME section.key=value ...' ['NAME ...'] ...
"""

import sys
from pathlib import Path

from accelerate.state import AcceleratorState, GradientState, PartialState

from trainer.config.loading import load_config
from trainer.engines.accelerator import make_accelerator
from trainer.monitoring.logs import setup_logging
from trainer.run import train_run


def main(config_file: str, out: str, *cells: str) -> None:
    setup_logging(0, 1)
    for cell in cells:
        name, *overrides = cell.split()
        config = load_config(Path(config_file), [f"run.out={Path(out) / name}", *overrides])
        accelerator = make_accelerator(config)
        train_run(config, accelerator)
        for state in (AcceleratorState, GradientState):
            state._reset_state()
    accelerator.end_training()
    PartialState._reset_state()


if __name__ == "__main__":
    main(*sys.argv[1:])
