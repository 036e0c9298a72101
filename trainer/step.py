"""One optimizer step: forward, backward, update of the weights and of the grouping.

Legend: N tasks, K branches, B batch, S samples of all micro-batches of a rank.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from data_pipelines.reading.collate import Batch
from model.grouping.gradient_statistics import GradientStatistics
from model.grouping.head_sampling import HeadSample
from model.network import NetworkOutput
from model.tasks.targets import Targets
from trainer.engines.engine import Engine
from trainer.recipes.learner import LearnerInput
from trainer.session import Session


@dataclass(frozen=True)
class StepResult:
    """The outcome of one optimizer step, equal on all ranks.

    Attributes:
        losses: Of all heads over the global batch [N,K]; zero for heads that were not computed.
        objective: Every task's part of the objective [N]. Each rank may have weights z of its own;
            this is the sum over the ranks.
        left_out: Whether the step was left out because a loss or a gradient was not finite.
    """

    losses: Tensor
    objective: Tensor
    left_out: bool


def train_step(session: Session, micro_batches: list[Batch]) -> StepResult:
    """Make one optimizer step; every rank must call it.

    The objective is sum_nk z_nk * loss_nk (DMTG, eq. 5), where the loss of a task is normalised
    by its valid labels over all micro-batches and ranks. Where only some heads are computed it is
    an estimate of that (`model.grouping.head_sampling`).

    Raises:
        NonFiniteLossError: The engine left out a step, and no more of them are allowed.
    """
    engine, learner, step = session.engine, session.learner, session.step
    _seed_step(session)
    statistics = engine.statistics.copy() if session.guard.allowed else {}
    learning_rate_factor = session.learning_rate_factor(step)
    engine.set_learning_rate(learning_rate_factor)

    labels = engine.module.labels
    targets = [labels.targets(b.scalars, b.dense, b.valid_rows) for b in micro_batches]
    local_counts = torch.stack([labels.label_counts(target) for target in targets]).sum(0)
    counts = engine.sum_over_ranks(local_counts)  # [N]
    inverse_counts = torch.where(counts > 0, 1.0 / counts.clamp_min(1e-12), 0.0)

    z = learner.weights(step, sum(len(batch.images) for batch in micro_batches))  # [N,K] or [N,K,S]
    head_sample = session.select_heads()
    weights = head_sample.weights(z.detach())
    local, collected = _forward_backward(session, micro_batches, targets, inverse_counts, weights)

    estimates = head_sample.losses(local, local_counts * inverse_counts)
    gradient = learner.grouping.logit_gradient(z, estimates)
    gradient = torch.where(head_sample.known, gradient, 0.0)
    objective = z.detach() * estimates
    if z.ndim == 3:
        local, objective = local.sum(dim=2), objective.sum(dim=2)
    gradient, losses, objective = engine.sum_over_ranks(torch.stack([gradient, local, objective]))

    left_out = _is_left_out(engine, losses)
    if left_out:
        session.guard.leave_out(step, losses, local)
        learner.leave_out(step)
        engine.statistics.restore(statistics)
    else:
        session.guard.update(step, losses, local)
        labelled = torch.where(counts[:, None] > 0, losses, torch.nan)
        _update_grouping(session, gradient, labelled, collected, head_sample, learning_rate_factor)
        engine.average_buffers()
    return StepResult(losses, objective.sum(dim=1), left_out)


def _seed_step(session: Session) -> None:
    """Make dropout and the like a function of seed, step and rank: nothing to save or restore."""
    key = (session.config.run.seed, session.step, session.accelerator.process_index)
    torch.manual_seed(int(np.random.SeedSequence(key).generate_state(1, np.uint64)[0]))


def _forward_backward(
    session: Session,
    micro_batches: list[Batch],
    targets: list[dict[str, Targets]],
    inverse_counts: Tensor,
    weights: Tensor,
) -> tuple[Tensor, list[GradientStatistics]]:
    """Make the forward and backward passes; the engine steps with the last of them.

    Args:
        targets: Of each micro-batch.
        inverse_counts: What each task's loss sums are multiplied by [N].
        weights: Of the heads' losses in the objective, [N,K] or [N,K,S].

    Returns:
        This rank's losses in the shape of the weights, and the gradient statistics of all ranks
        per micro-batch in the steps for which the learner collects them.
    """
    engine, collects = session.engine, session.learner.collects(session.step)
    per_sample = weights.ndim == 3
    scale = inverse_counts.view(-1, *[1] * (weights.ndim - 1))
    # The engine averages over micro-batches and ranks, the objective is a sum over them.
    parts = len(micro_batches) * session.accelerator.num_processes
    losses = torch.zeros_like(weights)
    statistics: list[GradientStatistics] = []
    first = 0
    for batch, target in zip(micro_batches, targets, strict=True):
        samples = slice(first, first + len(batch.images))
        first = samples.stop
        with engine.accumulate():
            output = _forward(session, batch, target, per_sample=per_sample, collects=collects)
            if collects:
                sums = output["gradient_statistics"]
                statistics.append({n: engine.sum_over_ranks(value) for n, value in sums.items()})
            part = output["losses"] * scale
            objective = ((weights[..., samples] if per_sample else weights) * part).sum() * parts
            engine.backward(session.guard.propagate_nonfinite(objective, part))
        if per_sample:
            losses[..., samples] = part.detach()
        else:
            losses = losses + part.detach()
    return losses, statistics


def _forward(
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


def _is_left_out(engine: Engine, losses: Tensor) -> bool:
    """Return whether the engine left out a bad step, rather than one of a too large loss scale.

    A step that the fp16 loss scaler skips is bad only if the losses [N,K] are not finite either.
    """
    if not engine.step_was_skipped:
        return False
    return engine.scaler is None or not bool(losses.isfinite().all())


def _update_grouping(
    session: Session,
    gradient: Tensor,
    losses: Tensor,
    collected: list[GradientStatistics],
    head_sample: HeadSample,
    learning_rate_factor: float,
) -> None:
    """Let the learner of the groups learn from a step.

    Args:
        gradient: Of the objective in the logits, over all ranks [N,K].
        losses: Over the global batch [N,K]; NaN for a task without labels.
    """
    learner = session.learner
    for statistics in collected:
        learner.collect(statistics, session.engine.module.labels.residual_tasks)
    losses = head_sample.computed_only(losses)
    inputs = LearnerInput(session.step, gradient, losses, learning_rate_factor, head_sample)
    learner.record_losses(inputs)
    learner.update(inputs)
