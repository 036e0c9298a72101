"""One optimizer step: forward, backward, update of the weights and of the grouping.

Legend: N tasks, K branches, B batch, S samples of all micro-batches of a rank.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from data_pipelines.reading.collate import Batch
from model.grouping.gradient_statistics import GradientStatistics
from trainer.engines.engine import Engine
from trainer.loss_weights.weighting import WeightingInput
from trainer.recipes.learner import LearnerInput
from trainer.session import Session
from trainer.step_batch import (
    StepBatch,
    forward,
    losses_without_step,
    seed_step,
    shares_of,
    weighted,
)


@dataclass(frozen=True)
class StepResult:
    """The outcome of one optimizer step, equal on all ranks.

    Attributes:
        losses: Of all heads over the global batch [N,K]; zero for heads that were not computed.
        objective: Every task's part of the objective [N], without its loss weight. Each rank may
            have weights z of its own; this is the sum over the ranks.
        loss_weights: What each task's part is multiplied by [N].
        left_out: Whether the step was left out because a loss or a gradient was not finite.
    """

    losses: Tensor
    objective: Tensor
    loss_weights: Tensor
    left_out: bool


def train_step(session: Session, micro_batches: list[Batch]) -> StepResult:
    """Make one optimizer step; every rank must call it.

    The objective is sum_nk w_n z_nk loss_nk (DMTG, eq. 5, with loss weights w), where the loss of a
    task is normalised by its valid labels over all micro-batches and ranks. Where only some heads
    are computed it is an estimate of that (`model.grouping.head_sampling`). The grouping learns
    from the losses without w.

    Raises:
        NonFiniteLossError: The engine left out a step, and no more of them are allowed.
    """
    engine, learner, step = session.engine, session.learner, session.step
    seed_step(session)
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
    shares = shares_of(weights, head_sample)
    step_batch = StepBatch(micro_batches, targets, inverse_counts, counts > 0, weights, shares)
    passes = _forward_backward(session, step_batch)
    local = passes.losses

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
        losses_of_heads = head_sample.computed_only(labelled)
        inputs = LearnerInput(
            step, gradient, losses_of_heads, learning_rate_factor, head_sample, counts
        )
        _update_grouping(session, inputs, passes.statistics)
        engine.average_buffers()
        _update_loss_weights(session, step_batch, passes, objective, learning_rate_factor)
    return StepResult(losses, objective.sum(dim=1), passes.loss_weights, left_out)


@dataclass(frozen=True)
class _Passes:
    """What the forward and backward passes of a step give.

    Attributes:
        losses: This rank's losses, of the shape of the weights of the heads.
        statistics: The gradient statistics of all ranks per micro-batch, in the steps for which the
            learner collects them.
        loss_weights: Of the tasks [N].
        before: The losses [N] that these are made of, if they are.
    """

    losses: Tensor
    statistics: list[GradientStatistics]
    loss_weights: Tensor
    before: Tensor | None


def _forward_backward(session: Session, step_batch: StepBatch) -> _Passes:
    """Make the forward and backward passes; the engine steps with the last of them."""
    engine, collects = session.engine, session.learner.collects(session.step)
    # The engine averages over micro-batches and ranks, the objective is a sum over them.
    parts = len(step_batch.micro_batches) * session.accelerator.num_processes
    losses = torch.zeros_like(step_batch.weights)
    statistics: list[GradientStatistics] = []
    before, loss_weights = _known_loss_weights(session, step_batch)
    for batch, target, samples in step_batch.parts():
        with engine.accumulate():
            output = forward(
                session, batch, target, per_sample=step_batch.per_sample, collects=collects
            )
            if collects:
                sums = output["gradient_statistics"]
                statistics.append({n: engine.sum_over_ranks(value) for n, value in sums.items()})
            part = step_batch.losses(output)
            if loss_weights is None:  # the losses of the only micro-batch are those of the step
                before = engine.sum_over_ranks(step_batch.task_losses(part, samples))
                loss_weights = _loss_weights(session, step_batch, before)
            weights = weighted(step_batch.weights_of(samples), loss_weights)
            objective = (weights * part).sum() * parts
            engine.backward(session.guard.propagate_nonfinite(objective, part))
        if step_batch.per_sample:
            losses[..., samples] = part.detach()
        else:
            losses = losses + part.detach()
    assert loss_weights is not None, "a step has a micro-batch"
    return _Passes(losses, statistics, loss_weights, before)


def _known_loss_weights(
    session: Session, step_batch: StepBatch
) -> tuple[Tensor | None, Tensor | None]:
    """Return the losses that the loss weights need, and these; None where they are not known yet.

    Of several micro-batches the losses must be known before the first backward pass.
    """
    if not session.loss_weighting.compares_losses:
        return None, _loss_weights(session, step_batch, None)
    if len(step_batch.micro_batches) == 1:
        return None, None
    before = losses_without_step(session, step_batch)
    seed_step(session)
    return before, _loss_weights(session, step_batch, before)


def _loss_weights(session: Session, step_batch: StepBatch, losses: Tensor | None) -> Tensor:
    step = session.step - session.phase.start
    return session.loss_weighting.weights(step, losses, step_batch.labelled)


def _update_loss_weights(
    session: Session,
    step_batch: StepBatch,
    passes: _Passes,
    objective: Tensor,
    learning_rate_factor: float,
) -> None:
    """Let the loss weights learn from a step.

    Args:
        objective: Without the loss weights, over all ranks [N,K].
    """
    weighting = session.loss_weighting
    after = losses_without_step(session, step_batch) if weighting.compares_losses else None
    weighting.update(
        WeightingInput(
            session.step - session.phase.start,
            objective.sum(dim=1),
            step_batch.labelled,
            learning_rate_factor,
            passes.before,
            after,
        )
    )


def _is_left_out(engine: Engine, losses: Tensor) -> bool:
    """Return whether the engine left out a bad step, rather than one of a too large loss scale.

    A step that the fp16 loss scaler skips is bad only if the losses [N,K] are not finite either.
    """
    if not engine.step_was_skipped:
        return False
    return engine.scaler is None or not bool(losses.isfinite().all())


def _update_grouping(
    session: Session, inputs: LearnerInput, collected: list[GradientStatistics]
) -> None:
    """Let the learner of the groups learn from a step."""
    learner = session.learner
    for statistics in collected:
        learner.collect(statistics, session.engine.module.labels.residual_tasks)
    learner.record_losses(inputs)
    learner.update(inputs)
