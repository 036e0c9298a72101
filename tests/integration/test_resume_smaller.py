"""A run goes on from a checkpoint of the network that pruning has made smaller."""

import json
import shutil

from trainer.checkpoints.checkpoint import load_checkpoint

# As many branches as tasks: some of them are bound to be chosen by none.
RUN = (
    "model.branches=6",
    "pruning.threshold=0.1",
    "pruning.end=0.5",
    "run.checkpoint_every=1",
    "run.keep_last=100",
)


def test_resumed_after_a_branch_was_dropped(rooms_config, train_here):
    whole = train_here(rooms_config(*RUN))
    records = [json.loads(line) for line in whole.folder.metrics.read_text().splitlines()]
    dropped = [r["step"] for r in records if r["kind"] == "compact" and len(r["branches"]) < 6]
    assert dropped, "the run never lost a branch: it no longer tests anything"
    checkpoints = sorted(whole.folder.checkpoints.glob("step-*"))
    final = {f.name: f.read_bytes() for f in checkpoints[-1].iterdir()}
    metrics = whole.folder.metrics.read_bytes()
    start = load_checkpoint(checkpoints[dropped[0]])
    assert start.progress.step == dropped[0] + 1
    assert start.grouping["logits"].shape[1] < 6
    for later in checkpoints[dropped[0] + 1 :]:
        shutil.rmtree(later)
    train_here(rooms_config(*RUN, "run.resume=auto"))
    assert {f.name: f.read_bytes() for f in checkpoints[-1].iterdir()} == final
    assert whole.folder.metrics.read_bytes() == metrics
