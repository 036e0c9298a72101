"""The training loop; `_train` is the story of one step."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

from torch import Tensor

from data_pipelines.reading.collate import Batch
from data_pipelines.reading.transfer import on_device
from model.metrics import metric_for
from model.tasks.spec import TaskSpec
from trainer.compaction import compact, should_compact
from trainer.config.loss_weights import DEFAULT_METHOD
from trainer.errors import Preempted
from trainer.evaluation import Metrics, evaluate_beside, share_constants
from trainer.health.damaged_samples import DamagedSampleCounter
from trainer.health.label_guard import LabelGuard
from trainer.health.preemption import StopVote
from trainer.health.stop_signals import defer_signals, end_saved
from trainer.health.watchdog import report_progress
from trainer.phase_change import enter_phase
from trainer.results.groups import groups_of
from trainer.run_data import label_batches
from trainer.session import Session
from trainer.snapshot import save_session
from trainer.step import StepResult, train_step

logger = logging.getLogger(__name__)

_SHOWN_TASKS = 6  # in the log line of an evaluation

Observer = Callable[[Session, list[Batch]], None]


@dataclass(frozen=True)
class _Due:
    """What follows a step, the same on every rank."""

    logs: bool
    prunes: bool
    evaluates: bool
    saves: bool

    @classmethod
    def after_step(cls, session: Session, stop_cause: str | None) -> _Due:
        """Return what is due after the session's last step, which may be asked to stop there."""
        config, step = session.config, session.step
        last = step == session.num_steps
        return cls(
            logs=last or step % config.log.every == 0,
            prunes=session.learner.prunes_at(step),
            evaluates=not last and config.eval.every > 0 and step % config.eval.every == 0,
            saves=last or stop_cause is not None or step % config.run.checkpoint_every == 0,
        )

    @property
    def anything(self) -> bool:
        """Whether the step is followed by something that bad values must not reach."""
        return self.logs or self.prunes or self.evaluates or self.saves


def train(session: Session, observe: Observer | None = None) -> Metrics:
    """Train from the session's step to the end of the run.

    Args:
        observe: Called in every step before anything of it is computed.

    Returns:
        The metrics of the final evaluation.

    Raises:
        NonFiniteLossError: A loss became NaN or infinite; no checkpoint holds its effects.
        UserError: The labels of the first batches carry no information.
        DataError: More than the allowed fraction of the samples is damaged.
        Preempted: A signal or the time limit asked to stop; the session is saved.
        SaveError: A checkpoint could not be written.
    """
    with session.writer:  # it finishes what is being written, however the training ends
        return _train(session, observe)


def _train(session: Session, observe: Observer | None) -> Metrics:
    config, accelerator = session.config, session.accelerator
    label_guard = LabelGuard(session.tasks, accelerator, allow_flat=config.data.allow_flat_labels)
    vote = StopVote(accelerator, config.run.max_minutes, lambda: session.stop_requested)
    session.callbacks.on_train_begin(session)
    if session.step == 0 and session.learner.finished:
        session.log.write(0, "given", heads=session.learner.grouping.heads())
    for micro_batches in _batches(session, label_guard.record):
        session.profile.before_step(session.step)
        vote.cast()
        label_guard.check(micro_batches)
        if observe is not None:
            observe(session, micro_batches)
        result = train_step(session, micro_batches)
        session.step += 1
        start = session.learner.take_group_start()
        if start is not None:
            session.log.group_start(session.step, start)
        defer_signals()  # there is something to save now
        cause = vote.result()
        due = _Due.after_step(session, cause)
        if due.anything:
            _check_health(session)
        session.monitor.timer.end_step()  # on a GPU it was waited for if this step logs
        ends = session.step == session.num_steps or cause is not None
        session.profile.after_step(session.step, last=ends)
        if result.left_out:
            session.log.write(session.step, "skip", **session.guard.record())
        else:
            if due.logs:
                _log_step(session, result, micro_batches)
            session.update_plateau(result.objective, result.loss_weights)
        if due.prunes:
            _prune(session)
        if due.evaluates:
            _evaluate(session)
        if due.saves:
            report_progress(f"step {session.step}, saving")
            save_session(session)
            session.callbacks.on_save(session)
        session.callbacks.on_step_end(session)
        if cause is not None:
            session.writer.wait()
            end_saved()
            session.monitor.note_step(session.step, session.num_steps)
            raise Preempted(session.step, cause)
    # After the last checkpoint: an error in the evaluation costs no training. A finished run that
    # is started again only evaluates.
    metrics = _evaluate(session, session.with_constants)
    session.callbacks.on_train_end(session, metrics)
    return metrics


def _check_health(session: Session) -> None:
    """Raise if a loss was not finite, too many samples are damaged, or a save has failed."""
    session.guard.check()
    session.damaged_samples.check(session.step * session.config.data.global_batch)
    session.writer.check()


def _batches(
    session: Session, record: Callable[[Iterable[Batch]], Iterable[Batch]] = iter
) -> Iterator[list[Batch]]:
    """Yield the micro-batches of every remaining step, on the device; enter phase after phase.

    Args:
        record: Yields the batches that it is given, which are on the host.
    """
    accelerator = session.accelerator
    while session.step < session.num_steps:
        enter_phase(session)
        loader = session.data.train_batches(
            session.step,
            session.phase.end,
            rank=accelerator.process_index,
            world_size=accelerator.num_processes,
        )
        host_batches = record(session.damaged_samples.count(loader))
        batches = on_device(host_batches, accelerator.device)
        report_progress(f"step {session.step}, reading data")
        timer, accumulation = (
            session.monitor.timer,
            session.config.optim.gradient_accumulation_steps,
        )
        while micro_batches := timer.next_step(batches, accumulation):
            report_progress(f"step {session.step}, training")
            yield micro_batches
            report_progress(f"step {session.step}, reading data")


def _log_step(session: Session, result: StepResult, micro_batches: list[Batch]) -> None:
    grouping, step = session.learner.grouping, session.step
    trained = sorted({task for task, _ in session.selection.heads})
    per_task = _by_task(session, result.objective, trained)
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
    groups = groups_of(step, [task.name for task in session.tasks], session.learner)
    status = {**values, "losses": per_task, "grouping": groups.to_json()}
    pace = session.monitor.report(step, session.num_steps, network, status)
    progress = session.monitor.progress(step)
    session.log.write(
        step, "train", **progress, **values, losses=per_task, **_loss_weights(session, result)
    )
    session.callbacks.on_log(session, {**progress, **values, "losses": per_task})
    session.log.scalars(step, {f"train/{name}": float(v) for name, v in values.items()})
    session.log.probabilities(step, grouping.probabilities())
    shown = {"loss": f"{values['loss']:.4f}", "temperature": f"{values['temperature']:.2f}"}
    shown["heads"] = f"{values['heads']} of {len(session.tasks) * session.config.model.branches}"
    if pace is not None:
        session.log.scalars(step, pace.scalars())
        shown["samples/s"] = f"{pace.samples_per_second:.0f}"
    session.log.advance(step, shown)


def _by_task(session: Session, values: Tensor, tasks: Iterable[int]) -> dict[str, float]:
    numbers = values.tolist()  # [N]
    return {session.tasks[task].name: numbers[task] for task in tasks}


def _loss_weights(session: Session, result: StepResult) -> dict[str, dict[str, float]]:
    """Return the loss weights of a step for its record; nothing with the method `equal`."""
    if session.config.loss_weights.method == DEFAULT_METHOD:
        return {}
    trained = sorted({task for task, _ in session.selection.heads})
    return {"loss_weights": _by_task(session, result.loss_weights, trained)}


def _prune(session: Session) -> None:
    """Switch heads off, and compact the network once enough of them are off."""
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


def noted(batches: Iterable[Batch], doing: str) -> Iterator[Batch]:
    """Yield the batches, and report each of them to the watchdog as progress."""
    report_progress(doing)
    for batch in batches:
        yield batch
        report_progress(doing)


def _evaluate(session: Session, with_constants: bool = False) -> Metrics:
    accelerator = session.accelerator
    loader = session.data.eval_batches(
        rank=accelerator.process_index, world_size=accelerator.num_processes
    )
    samples = session.data.eval_samples
    damaged = DamagedSampleCounter(accelerator, session.config.data, samples)
    activity = f"step {session.step}, evaluating"
    evaluated = min(samples, session.config.eval.limit or samples)
    shown = session.log.track(damaged.count(loader), evaluated, accelerator.num_processes)
    with session.monitor.evaluating(session.step):
        constants = None
        if with_constants:
            labels = label_batches(session.config, session.data)
            constants = share_constants(session.engine, noted(labels, activity))
        metrics, session.constants = evaluate_beside(
            session.engine, noted(shown, activity), session.learner.chosen_heads(), constants
        )
    damaged.check(evaluated)
    session.log.write(session.step, "eval", metrics=metrics, **damaged.record())
    logger.info("step %d: evaluation: %s", session.step, _primary(session.tasks, metrics))
    flat = {f"eval/{t}/{name}": v for t, values in metrics.items() for name, v in values.items()}
    session.log.scalars(session.step, flat, kind="eval")
    session.callbacks.on_evaluate(session, metrics)
    return metrics


def _primary(tasks: Sequence[TaskSpec], metrics: Metrics) -> str:
    """Return the primary metrics of the first tasks that have labels, as text."""
    shown = [
        f"{task.name} {metric} {metrics[task.name][metric]:.4g}"
        for task in tasks
        if (metric := metric_for(task).primary) in metrics.get(task.name, {})
    ]
    more = len(shown) - _SHOWN_TASKS
    text = ", ".join(shown[:_SHOWN_TASKS]) or "no task has a label in this split"
    return f"{text} and {more} more tasks" if more > 0 else text
