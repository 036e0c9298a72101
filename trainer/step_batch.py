"""The data of one step on a rank, and the weights of its losses.

Legend: N tasks, K branches, B batch, S samples of all micro-batches of a rank.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from data_pipelines.reading.collate import Batch
from model.grouping.head_sampling import HeadSample
from model.network import NetworkOutput
from model.tasks.targets import Targets
from trainer.session import Session


@dataclass(frozen=True)
class StepBatch:
    """The micro-batches of a rank with what their losses are multiplied by.

    Attributes:
        micro_batches: On the device.
        targets: Of each micro-batch.
        inverse_counts: What each task's loss sums are multiplied by [N].
        labelled: Which tasks have a label on any rank, bool [N].
        weights: Of the heads' losses in the objective, [N,K] or [N,K,S].
        shares: The same for the loss of a task, which is a mean over its computed heads.
    """

    micro_batches: Sequence[Batch]
    targets: Sequence[dict[str, Targets]]
    inverse_counts: Tensor
    labelled: Tensor
    weights: Tensor
    shares: Tensor

    @property
    def per_sample(self) -> bool:
        """Whether every sample has weights of its own."""
        return self.weights.ndim == 3

    def losses(self, output: NetworkOutput) -> Tensor:
        """Return this rank's addends to the losses of the heads [N,K], or of every sample."""
        return output["losses"] * _beside(self.inverse_counts, self.weights)

    def parts(self) -> Iterator[tuple[Batch, dict[str, Targets], slice]]:
        """Yield each micro-batch, its targets, and its samples' place in the last axis of S."""
        first = 0
        for batch, target in zip(self.micro_batches, self.targets, strict=True):
            samples = slice(first, first + len(batch.images))
            first = samples.stop
            yield batch, target, samples

    def weights_of(self, samples: slice) -> Tensor:
        """Return the weights of the heads for some samples."""
        return self.weights[..., samples] if self.per_sample else self.weights

    def task_losses(self, losses: Tensor, samples: slice) -> Tensor:
        """Return this rank's addends to the losses of the tasks [N], from `losses`."""
        shares = self.shares[..., samples] if self.per_sample else self.shares
        return (shares * losses.detach()).flatten(1).sum(dim=1)


def shares_of(weights: Tensor, head_sample: HeadSample) -> Tensor:
    """Return the weights of the computed heads in the loss of a task, of the shape of the weights.

    With sampled heads they are scaled to the sum 1: the loss of a task is then a mean of losses
    and cannot become negative.
    """
    if head_sample.complete:
        return weights
    sums = weights.sum(dim=1, keepdim=True)
    return torch.where(sums > 0, weights / sums, 0.0)


def weighted(weights: Tensor, task_weights: Tensor) -> Tensor:
    """Return the weights of the heads times those of the tasks [N]."""
    return weights * _beside(task_weights, weights)


def _beside(of_tasks: Tensor, of_heads: Tensor) -> Tensor:
    """Return [N] shaped to broadcast over [N,K] or [N,K,S]."""
    return of_tasks.view(-1, *[1] * (of_heads.ndim - 1))


def forward(
    session: Session, batch: Batch, targets: dict[str, Targets], *, per_sample: bool, collects: bool
) -> NetworkOutput:
    """Return the losses of a micro-batch, and its gradient statistics if they are collected."""
    with session.monitor.timer.forward():
        return session.engine.network(
            batch.images,
            session.selection,
            targets,
            per_sample=per_sample,
            gradient_statistics=collects,
        )


@torch.no_grad()
def losses_without_step(session: Session, step_batch: StepBatch) -> Tensor:
    """Return the losses of the tasks over the global batch [N]; every rank must call it.

    The network has the dropout masks of the step, and keeps its running statistics.
    """
    engine = session.engine
    statistics = engine.statistics.copy()
    seed_step(session)
    losses = torch.zeros_like(step_batch.inverse_counts)
    for batch, targets, samples in step_batch.parts():
        output = forward(session, batch, targets, per_sample=step_batch.per_sample, collects=False)
        losses = losses + step_batch.task_losses(step_batch.losses(output), samples)
    engine.statistics.restore(statistics)
    return engine.sum_over_ranks(losses)


def seed_step(session: Session) -> None:
    """Make dropout and the like a function of seed, step and rank: nothing to save or restore."""
    key = (session.config.run.seed, session.step, session.accelerator.process_index)
    torch.manual_seed(int(np.random.SeedSequence(key).generate_state(1, np.uint64)[0]))
