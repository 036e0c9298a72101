"""Inter-task affinity by looking one step ahead (TAG, Fifty et al. 2021, arXiv 2109.04617).

Legend: N tasks.
"""

from __future__ import annotations

import torch
from torch import Tensor

from data_pipelines.reading.collate import Batch
from trainer.recipes.mean_affinity import add_affinity
from trainer.recipes.task_losses import TaskLosses
from trainer.session import Session


def observe_look_ahead(session: Session, micro_batches: list[Batch]) -> None:
    """Add the affinities of this step to the run's mean, every `grouping.search.every` steps.

    The batch is the first micro-batch of the step, the step ahead one of plain gradient descent
    at the encoder's learning rate.
    """
    if session.step % session.config.grouping.search.every:
        return
    rate = session.config.optim.lr * session.learning_rate_factor(session.step)
    add_affinity(session, *look_ahead_affinity(session, micro_batches[0], rate))


def look_ahead_affinity(session: Session, batch: Batch, rate: float) -> tuple[Tensor, Tensor]:
    """How far a step along one task's gradient lowers the other tasks' losses (eq. 1).

    Z[i,j] = 1 - L_j(shared parameters after the step of task i) / L_j(before), heads unchanged.

    Returns:
        Z [N,N], and for which pairs it is known: those with labels of both tasks in the batch.
    """
    engine = session.engine
    task_losses = TaskLosses(session, batch)
    own = task_losses.own(task_losses.shared)
    ahead = [_after_step(session, task_losses, own, task, rate) for task in range(len(own))]
    rows = engine.sum_over_ranks(torch.stack([own.detach(), *ahead]))  # [1+N,N]
    before, after = rows[0], rows[1:]
    known = task_losses.labelled & (before > 0)
    valid = known[:, None] & known[None, :]
    return torch.where(valid, 1.0 - after / torch.where(known, before, 1.0), 0.0), valid


def _after_step(
    session: Session, task_losses: TaskLosses, own: Tensor, task: int, rate: float
) -> Tensor:
    """This rank's addends [N] to all losses after a step of one task."""
    gradients = task_losses.gradient(own, task)
    flat = session.engine.sum_over_ranks(torch.cat([g.flatten() for g in gradients]))
    with torch.no_grad():
        moved = [
            parameter - rate * part.view_as(parameter)
            for parameter, part in zip(
                task_losses.shared, flat.split([g.numel() for g in gradients]), strict=True
            )
        ]
        return task_losses.own(moved)
