"""The recipe `tag`: affinity of tasks one step ahead (TAG, Fifty et al. 2021, arXiv 2109.04617).

Legend: N tasks.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from data_pipelines.reading.collate import Batch
from dmtg.plugins import register_recipe
from trainer.recipes.cover import best_cover
from trainer.recipes.groups import Groups
from trainer.recipes.mean_affinity import add_affinity
from trainer.recipes.observed_run import ObservedRun
from trainer.recipes.searched import ObservedGroups, SearchSection
from trainer.recipes.task_losses import TaskLosses


@register_recipe("tag")
class TagGroups(ObservedGroups):
    """The groups of the highest mean affinity."""

    @staticmethod
    def observe(section: SearchSection, run: ObservedRun, micro_batches: list[Batch]) -> None:
        """Add the affinities of this step to the run's mean, every `search_every` steps.

        The batch is the first micro-batch of the step, and the step ahead one of plain gradient
        descent at the encoder's learning rate.
        """
        if run.step % section.search_every:
            return
        rate = run.config.optim.lr * run.learning_rate_factor(run.step)
        add_affinity(run, *look_ahead_affinity(run, micro_batches[0], rate))

    @staticmethod
    def partition(affinity: np.ndarray, max_groups: int) -> Groups:
        """Return the partition of the highest score, see `best_cover`."""
        return best_cover(affinity, max_groups)


def look_ahead_affinity(run: ObservedRun, batch: Batch, rate: float) -> tuple[Tensor, Tensor]:
    """Return how far a step along one task's gradient lowers the other tasks' losses (eq. 1).

    Z[i,j] = 1 - L_j(shared parameters after the step of task i) / L_j(before), heads unchanged.

    Returns:
        Z [N,N], and for which pairs it is known: those with labels of both tasks in the batch.
    """
    engine = run.engine
    task_losses = TaskLosses(run, batch)
    local = task_losses.local(task_losses.shared)
    ahead = [_after_step(run, task_losses, local, task, rate) for task in range(len(local))]
    rows = engine.sum_over_ranks(torch.stack([local.detach(), *ahead]))  # [1+N,N]
    before, after = rows[0], rows[1:]
    known = task_losses.labelled & (before > 0)
    valid = known[:, None] & known[None, :]
    return torch.where(valid, 1.0 - after / torch.where(known, before, 1.0), 0.0), valid


def _after_step(
    run: ObservedRun, task_losses: TaskLosses, local: Tensor, task: int, rate: float
) -> Tensor:
    """Return this rank's addends [N] to all losses after a step of one task."""
    gradients = task_losses.gradient(local, task)
    flat = run.engine.sum_over_ranks(torch.cat([g.flatten() for g in gradients]))
    with torch.no_grad():
        moved = [
            parameter - rate * part.view_as(parameter)
            for parameter, part in zip(
                task_losses.shared, flat.split([g.numel() for g in gradients]), strict=True
            )
        ]
        return task_losses.local(moved)
