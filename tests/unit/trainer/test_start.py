"""One start of a run in a process: what its garbage collection looks at."""

import gc

import pytest

from trainer.api import Trainer
from trainer.start import train


@pytest.fixture
def nothing_is_frozen():
    gc.unfreeze()
    yield
    gc.collect()
    gc.freeze()


@pytest.mark.usefixtures("nothing_is_frozen")
def test_collections_of_a_run_leave_modules_out(rooms_yaml, tmp_path, monkeypatch):
    looked_at = []

    def train_here(*_):
        looked_at.append(len(gc.get_objects()))
        raise InterruptedError("no training here")

    monkeypatch.setattr(Trainer, "train_here", train_here)
    before = len(gc.get_objects())
    assert train(rooms_yaml, [f"run.out={tmp_path / 'run'}"]) == 1
    assert looked_at[0] < 0.1 * before
