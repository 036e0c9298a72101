"""The training loop: what happens around a step reads top to bottom in `_train`."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator

from torch import Tensor

from data_pipelines.reading.collate import Batch
from trainer.errors import Preempted
from trainer.evaluation import Metrics, evaluate
from trainer.health.damaged_samples import DamagedSampleCounter
from trainer.health.label_guard import LabelGuard
from trainer.health.preemption import StopVote
from trainer.health.watchdog import report_progress
from trainer.rebuild import compact, enter_phase, should_compact
from trainer.session import Session, save_session
from trainer.step import train_step

logger = logging.getLogger(__name__)

Observer = Callable[[Session, list[Batch]], None]


def train(session: Session, observe: Observer | None = None) -> Metrics:
    """Train from the session's step to the end of the run.

    Args:
        observe: Called in every step before anything of it is computed.

    Returns:
        The metrics of the final evaluation.

    Raises:
        NonFiniteLossError: A loss became NaN or infinite; no checkpoint holds its effects.
        UserError: The labels of the first batches carry no information.
        DataError: More than the allowed share of the samples is damaged.
        Preempted: A signal or the time limit asked to stop; the session is saved and closed.
        SaveError: A checkpoint could not be written.
    """
    with session.writer:  # whatever ends the training, it waits for what is being written
        return _train(session, observe)


def _train(session: Session, observe: Observer | None) -> Metrics:
    config, accelerator = session.config, session.accelerator
    label_guard = LabelGuard(session.tasks, accelerator, allow_flat=config.data.allow_flat_labels)
    vote = StopVote(accelerator, config.run.max_minutes)
    if session.step == 0 and session.learner.finished:
        session.log.write(0, "given", heads=session.learner.grouping.heads())
    for micro_batches in _batches(session):
        session.profile.before_step(session.step)
        vote.cast()
        label_guard.update(micro_batches)
        if observe is not None:
            observe(session, micro_batches)
        objective = train_step(session, micro_batches)[1]
        session.step += 1
        step, last = session.step, session.step == session.num_steps
        logs = last or step % config.log.every == 0
        prunes = session.learner.prunes_at(step)
        evaluates = not last and config.eval.every > 0 and step % config.eval.every == 0
        cause = vote.result()
        saves = last or cause is not None or step % config.run.checkpoint_every == 0
        if logs or prunes or evaluates or saves:
            session.guard.check()
            session.damaged_samples.check(step * config.data.global_batch)
            session.writer.check()
        session.monitor.timer.end_step()  # on a GPU it was waited for if this step logs
        session.profile.after_step(step, last=last or cause is not None)
        if session.guard.left_out:
            session.log.write(step, "skip", **session.guard.record())
        else:
            if logs:
                _log_step(session, objective, micro_batches)
            session.watch_plateau(objective)
        if prunes:
            _prune(session)
        if evaluates:
            _evaluate(session)
        if saves:
            report_progress(f"step {step}, saving")
            save_session(session)
        if cause is not None:
            session.writer.wait()
            session.close()
            raise Preempted(step, cause)
    # After the last checkpoint: what goes wrong here costs no training. A finished run that is
    # started again comes straight here.
    return _evaluate(session)


def _batches(session: Session) -> Iterator[list[Batch]]:
    """The micro-batches of every remaining step, on the device; phase after phase is entered."""
    accelerator = session.accelerator
    while session.step < session.num_steps:
        enter_phase(session)
        loader = session.data.train_batches(
            session.step,
            session.phase.end,
            rank=accelerator.process_index,
            world_size=accelerator.num_processes,
        )
        batches = session.damaged_samples.count(loader)
        report_progress(f"step {session.step}, reading data")
        timer, accumulation = session.monitor.timer, session.config.optim.accumulation
        while micro_batches := timer.next_step(batches, accumulation):
            report_progress(f"step {session.step}, training")
            yield [batch.to(accelerator.device) for batch in micro_batches]
            report_progress(f"step {session.step}, reading data")


def _log_step(session: Session, objective: Tensor, micro_batches: list[Batch]) -> None:
    grouping, step = session.learner.grouping, session.step
    objectives = objective.tolist()  # [N]
    trained = sorted({task for task, _ in session.selection.heads})
    per_task = {session.tasks[task].name: objectives[task] for task in trained}
    values = {
        "loss": sum(per_task.values()) / len(per_task),
        "temperature": session.learner.temperature(step - 1),
        "heads": int(grouping.alive.sum()),
        "branches": int(grouping.alive.any(dim=0).sum()),
        "lr": session.config.optim.lr * session.learning_rate_factor(step - 1),
        **session.damaged_samples.record(),
        **session.guard.record(),
    }
    network = (session.engine.module, session.selection, micro_batches)
    pace = session.monitor.report(step, session.num_steps, network, {**values, "losses": per_task})
    progress = session.monitor.progress(step)
    session.log.write(step, "train", **progress, **values, losses=per_task)
    session.log.scalars(step, {f"train/{name}": float(v) for name, v in values.items()})
    session.log.probabilities(step, grouping.probabilities())
    shown = {"loss": f"{values['loss']:.4f}", "tau": f"{values['temperature']:.2f}"}
    shown["heads"] = f"{values['heads']}/{len(session.tasks) * session.config.model.branches}"
    if pace is not None:
        session.log.scalars(step, pace.scalars())
        shown["samples/s"] = f"{pace.samples_per_second:.0f}"
    session.log.advance(step, shown)


def _prune(session: Session) -> None:
    """Switch heads off, and rebuild the network without them once that is worth it."""
    learner = session.learner
    off = learner.prune(session.step)
    if not off:
        return
    session.log.write(session.step, "prune", off=off, heads=int(learner.grouping.alive.sum()))
    if should_compact(session):
        kept = compact(session)
        session.log.write(session.step, "compact", branches=list(kept))
        logger.info(
            "step %d: %d heads on %d branches are left",
            session.step,
            len(session.engine.module.heads),
            len(kept),
        )
    session.refresh_selection()


def _noted(batches: Iterable[Batch], doing: str) -> Iterator[Batch]:
    """The batches, each of which is progress."""
    report_progress(doing)
    for batch in batches:
        yield batch
        report_progress(doing)


def _evaluate(session: Session) -> Metrics:
    accelerator = session.accelerator
    loader = session.data.eval_batches(
        rank=accelerator.process_index, world_size=accelerator.num_processes
    )
    samples = session.data.eval_samples
    damaged = DamagedSampleCounter(accelerator, session.config.data, samples)
    watched = _noted(damaged.count(loader), f"step {session.step}, evaluating")
    with session.monitor.evaluating(session.step):
        metrics = evaluate(session.engine, watched, session.learner.chosen_heads())
    damaged.check(min(samples, session.config.eval.limit or samples))
    session.log.write(session.step, "eval", metrics=metrics, **damaged.record())
    flat = {f"eval/{t}/{name}": v for t, values in metrics.items() for name, v in values.items()}
    session.log.scalars(session.step, flat, kind="eval")
    return metrics
