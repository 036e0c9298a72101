"""Trains like trainer/main.py and records, on every rank, the groups, the logits and the metrics.

Usage: record_groups.py RECORDS_DIR --config FILE [section.key=value ...]
"""

import json
import os
import sys
from pathlib import Path

from trainer.config.loading import load_config
from trainer.engines.accelerator import make_accelerator
from trainer.run import train_run


def main(records: str, _flag: str, config_file: str, *overrides: str) -> None:
    config = load_config(Path(config_file), overrides)
    accelerator = make_accelerator(config)
    session, metrics = train_run(config, accelerator)
    record = {
        "heads": session.learner.chosen_heads(),
        "average": session.learner.tensors()["average"].tolist(),
        "metrics": metrics,
    }
    path = Path(records) / f"{os.environ.get('RANK', '0')}.json"
    path.write_text(json.dumps(record))
    accelerator.end_training()


if __name__ == "__main__":
    main(*sys.argv[1:])
