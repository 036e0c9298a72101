"""One optimizer step: forward, backward, update of the weights and of the groups.

Legend: N tasks, K branches, B batch, S samples of all micro-batches.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from data_pipelines.reading.collate import Batch
from model.grouping.gradient_statistics import GradientStatistics
from model.grouping.head_sampling import HeadSample
from model.tasks.targets import Targets
from trainer.engines.engine import Engine
from trainer.session import Session


def train_step(session: Session, micro_batches: list[Batch]) -> tuple[Tensor, Tensor]:
    """Make one optimizer step; every rank must call it.

    The objective is sum_nk z_nk * loss_nk (DMTG, eq. 5), where the loss of a task is normalised
    by its valid labels over all micro-batches and ranks. Where only some heads are computed it is
    an estimate of that (`model.grouping.head_sampling`).

    Returns:
        The losses [N,K] of all heads over the global batch, zero for those that were not computed,
        and the objective's share [N] of every task, where each rank has weights z of its own.

    Raises:
        NonFiniteLossError: The engine left out a step, and no more of them are allowed.
    """
    _seed_step(session)
    engine, learner, guard = session.engine, session.learner, session.guard
    module = engine.module
    buffers = engine.running_statistics() if guard.allowed else []
    before = [value.clone() for value in buffers]
    factor = session.learning_rate_factor(session.step)
    engine.set_learning_rate(factor)
    targets = [module.targets(b.scalars, b.dense, b.valid_rows) for b in micro_batches]
    own_labels = torch.stack([module.weights(t) for t in targets]).sum(0)
    labelled = engine.sum_over_ranks(own_labels)
    share = torch.where(labelled > 0, 1.0 / labelled.clamp_min(1e-12), 0.0)  # [N]
    num_samples = sum(len(batch.images) for batch in micro_batches)
    weights = learner.weights(session.step, num_samples)  # [N,K], or [N,K,S]
    head_sample, factors = _choose_heads(session, weights)
    losses, statistics = _backward(session, micro_batches, targets, share, factors)
    estimates = losses if head_sample is None else head_sample.losses(losses, own_labels * share)
    gradient = learner.grouping.logit_gradient(weights, estimates)
    if head_sample is not None:
        gradient = torch.where(head_sample.known, gradient, 0.0)
    objective = weights.detach() * estimates
    if weights.ndim == 3:
        losses, objective = losses.sum(dim=2), objective.sum(dim=2)
    own = losses
    gradient, losses, objective = engine.sum_over_ranks(torch.stack([gradient, losses, objective]))
    if _is_left_out(engine, losses):
        guard.leave_out(session.step, losses, own)
        learner.leave_out(session.step)
        for value, old in zip(buffers, before, strict=True):
            value.copy_(old)
        return losses, objective.sum(dim=1)
    guard.update(session.step, losses, own)
    for collected in statistics:
        learner.collect(collected, module.residual_tasks)
    known = torch.where(labelled[:, None] > 0, losses, torch.nan)
    if head_sample is not None:
        known = torch.where(head_sample.factor > 0, known, torch.nan)
        learner.watch(known, head_sample)
    learner.update(session.step, gradient, known, factor, head_sample)
    engine.average_buffers()
    return losses, objective.sum(dim=1)


def _choose_heads(session: Session, weights: Tensor) -> tuple[HeadSample | None, Tensor]:
    """Plan the step's heads, if these are not all, and weigh their losses in the objective."""
    head_sample = session.learner.sample_heads(session.step)
    if head_sample is None:
        return None, weights
    session.selection = session.engine.module.select_sample(head_sample)
    return head_sample, head_sample.weights(weights.detach())


def _backward(
    session: Session,
    micro_batches: list[Batch],
    targets: list[dict[str, Targets]],
    share: Tensor,
    weights: Tensor,
) -> tuple[Tensor, list[GradientStatistics]]:
    """Forward and backward of all micro-batches, with the last of which the engine steps.

    Args:
        targets: Of each micro-batch.
        share: What each task's loss sums are multiplied by [N].
        weights: Of the heads' losses in the objective, [N,K] or [N,K,S].

    Returns:
        This rank's losses in the shape of the weights, and the statistics that the learner wants.
    """
    engine = session.engine
    # The engine averages over micro-batches and ranks, the objective is a sum over them.
    parts = len(micro_batches) * session.accelerator.num_processes
    losses = torch.zeros_like(weights)
    statistics: list[GradientStatistics] = []
    first = 0
    for batch, target in zip(micro_batches, targets, strict=True):
        last = first + len(batch.images)
        own_weights = weights if weights.ndim == 2 else weights[..., first:last]
        with engine.accumulate():
            with session.monitor.timer.forward():
                own = _head_losses(session, batch, target, statistics, per_sample=weights.ndim == 3)
            own = own * share.view(-1, *[1] * (own.ndim - 1))
            objective = (own_weights.detach() * own).sum() * parts
            engine.backward(session.guard.propagate_nonfinite(objective, own))
        if weights.ndim == 2:
            losses = losses + own.detach()
        else:
            losses[..., first:last] = own.detach()
        first = last
    return losses, statistics


def _seed_step(session: Session) -> None:
    """Make dropout and the like a function of seed, step and rank: nothing to save or restore."""
    key = (session.config.run.seed, session.step, session.accelerator.process_index)
    torch.manual_seed(int(np.random.SeedSequence(key).generate_state(1, np.uint64)[0]))


def _is_left_out(engine: Engine, losses: Tensor) -> bool:
    """Whether the engine left a step out that was bad: not one whose fp16 loss scale was too big.

    What its loss scaler refuses is bad only where the losses [N,K] are, too.
    """
    if not engine.step_was_skipped:
        return False
    return engine.scaler is None or not bool(losses.isfinite().all())


def _head_losses(
    session: Session,
    batch: Batch,
    targets: dict[str, Targets],
    statistics: list[GradientStatistics],
    *,
    per_sample: bool,
) -> Tensor:
    """The loss sums of the heads, [N,K] or [N,K,B]; `statistics` takes those the learner wants."""
    engine, learner = session.engine, session.learner
    if not learner.collects(session.step):
        return engine.network(batch.images, session.selection, targets, per_sample=per_sample)
    losses, own = engine.network(
        batch.images, session.selection, targets, per_sample=per_sample, gradient_statistics=True
    )
    statistics.append({name: engine.sum_over_ranks(value) for name, value in own.items()})
    return losses
