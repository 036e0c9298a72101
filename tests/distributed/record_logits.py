"""Trains like trainer/main.py and records, on every rank, what the logits' update was given.

Usage: record_logits.py RECORDS_DIR --config FILE [section.key=value ...]
"""

import os
import sys
from pathlib import Path

import numpy as np

from trainer.config.loading import load_config
from trainer.engines.accelerator import make_accelerator
from trainer.loop import train
from trainer.recipes.published import PublishedGroups
from trainer.session import start_session


class Recorder:
    """Stands before `PublishedGroups.update` and keeps its arguments and the logits after it."""

    def __init__(self) -> None:
        self.gradients, self.factors, self.logits = [], [], []
        self._update = PublishedGroups.update

    def install(self) -> None:
        recorder = self

        def update(learner, result):
            recorder.gradients.append(result.logits_gradient.detach().cpu().numpy().copy())
            recorder.factors.append(result.lr_factor)
            recorder._update(learner, result)
            logits = learner.grouping.logits.detach()
            assert str(logits.dtype) == "torch.float32"
            recorder.logits.append(logits.cpu().numpy().copy())

        PublishedGroups.update = update

    def save(self, folder: Path) -> None:
        arrays = {name: np.stack(getattr(self, name)) for name in ("gradients", "logits")}
        np.savez(folder / f"{os.environ['RANK']}.npz", factors=self.factors, **arrays)


def main(records: str, _flag: str, config_file: str, *overrides: str) -> None:
    recorder = Recorder()
    recorder.install()
    config = load_config(Path(config_file), overrides)
    accelerator = make_accelerator(config)
    with start_session(config, accelerator) as session:
        train(session)
    recorder.save(Path(records))
    accelerator.end_training()


if __name__ == "__main__":
    main(*sys.argv[1:])
