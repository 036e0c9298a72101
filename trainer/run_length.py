"""Whether a resume may change the length of a run, and what stays as it was at its first start."""

from __future__ import annotations

from trainer.checkpoints.checkpoint import Checkpoint, Progress
from trainer.config.config import Config
from trainer.errors import UserError
from trainer.recipes.learner import GroupLearner
from trainer.run_data import RunData, num_steps
from trainer.run_folder import RunFolder


def first_search_steps(checkpoint: Checkpoint | None, search_steps: int) -> int:
    """Return the steps of which the grouping's schedule has fractions.

    They are those of the first start: what the grouping has begun goes on as it was planned, so
    that no phase of it is repeated or left out.

    Args:
        checkpoint: The one that the run continues from; None for a new run.
        search_steps: Steps until every task has one head, by the configuration of this start.
    """
    stored = 0 if checkpoint is None else checkpoint.progress.grouping_steps
    return stored or search_steps


def check_length(
    config: Config, folder: RunFolder, data: RunData, progress: Progress, learner: GroupLearner
) -> None:
    """Check that a run may go on with its number of steps.

    Args:
        config: Of this start.
        folder: Of the run, which still has the configuration of the start before.
        data: Of the run.
        progress: Of the checkpoint that the run continues from.
        learner: With the state of the checkpoint.

    Raises:
        UserError: The number was changed, and steps that are done or the decision on the groups are
            not among the new ones.
    """
    new = num_steps(config, data)
    old = progress.search_steps or num_steps(folder.load_config(), data)
    if new == old:
        return
    key = "run.steps" if config.run.steps is not None else "run.epochs"
    found = f"{key}: {new} steps in all, the last start of this run had {old}"
    if progress.step > old:
        raise UserError(f"{found}; it is fine-tuned since then; allowed: {old}")
    if progress.step > new:
        raise UserError(f"{found}; {progress.step} are done; allowed: at least as many")
    if learner.finished:
        return
    if not progress.search_steps:
        raise UserError(
            f"{found}; an earlier version of this program wrote its checkpoint: continue without "
            "the change to the next checkpoint first, or until the groups are decided"
        )
    if learner.finish_step > new:
        raise UserError(
            f"{found}; its groups are decided after step {learner.finish_step} (pruning.end of the "
            f"{progress.grouping_steps} steps of its first start); allowed: at least as many"
        )
