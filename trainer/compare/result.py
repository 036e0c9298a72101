"""Read the result of a finished run from its folder."""

from __future__ import annotations

from pathlib import Path
from statistics import fmean
from typing import Any

from model.bundle import groups_of
from model.network import MultiTaskNetwork
from model.subset import subset
from trainer.checkpoints.checkpoint import load_checkpoint, newest_checkpoint
from trainer.errors import UserError
from trainer.json_file import to_number
from trainer.recipes.learner import hard_heads
from trainer.report.records import read_metrics
from trainer.run_folder import RunFolder

_LAST = 0.1  # fraction of the training records, at the end, whose loss is averaged


def read_result(run: Path) -> dict[str, Any]:
    """Return the result of a finished run.

    Returns:
        JSON values: `tasks`, `metrics` of the final evaluation, mean `train_loss` at the end,
        `groups` of task names, and the number of `parameters` of the model with one head per task.

    Raises:
        UserError: The folder holds no complete checkpoint or no evaluation of it.
    """
    folder = RunFolder(run)
    newest = newest_checkpoint(folder.checkpoints)
    if newest is None:
        raise UserError(f"{run}: no whole checkpoint in {folder.checkpoints}")
    checkpoint = load_checkpoint(newest)
    records = read_metrics(run)
    step = checkpoint.progress.step
    evaluations = [r for r in records if r["kind"] == "eval" and r["step"] == step]
    if not evaluations:
        raise UserError(f"{run}: metrics.jsonl has no evaluation of step {step}, the last one")
    network = MultiTaskNetwork.from_config(checkpoint.progress.network)
    heads = hard_heads(checkpoint.grouping["logits"], checkpoint.grouping["alive"])
    pruned = subset(network, heads)
    losses = [to_number(record["loss"]) for record in records if record["kind"] == "train"]
    return {
        "tasks": [task.to_dict() for task in network.tasks],
        "metrics": evaluations[-1]["metrics"],
        "train_loss": fmean(losses[-max(1, round(_LAST * len(losses))) :]),
        "groups": groups_of(pruned),
        "parameters": sum(parameter.numel() for parameter in pruned.parameters()),
    }
