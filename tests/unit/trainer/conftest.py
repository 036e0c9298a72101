"""Runs of a few steps on shards that a test has written."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from accelerate.state import AcceleratorState, GradientState, PartialState

from trainer.config.loading import parse_config
from trainer.engines.accelerator import make_accelerator
from trainer.session import Session, start_session

ENCODER = {
    "name": "backbone",
    "options": {
        "model_type": "convnextv2",
        "hidden_sizes": [8, 16],
        "depths": [1, 1],
        "patch_size": 4,
        "num_stages": 2,
    },
}


def _forget_engine() -> None:
    for state in (AcceleratorState, PartialState, GradientState):
        state._shared_state.clear()


@pytest.fixture
def session_of(tmp_path) -> Iterator[Callable[..., Session]]:
    """Starts a session on a folder of shards; sections given by name are merged in."""

    def start(shards: Path, size: int, *, batch: int, **sections: dict) -> Session:
        _forget_engine()
        tree: dict = {
            "run": {"out": str(tmp_path / "run"), "steps": 20, "seed": 5, "precision": "fp32"},
            "data": {
                "shards": str(shards),
                "image_size": [size, size],
                "global_batch": batch,
                "workers": 0,
                "eval_split": "train",
            },
            "model": {"branches": 2, "dense_widths": [8], "encoder": ENCODER},
            "log": {"trackers": [], "progress": False},
        }
        for name, values in sections.items():
            tree[name] = {**tree.get(name, {}), **values}
        config = parse_config(tree, "test")
        return start_session(config, make_accelerator(config))

    yield start
    _forget_engine()
