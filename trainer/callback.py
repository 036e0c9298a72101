"""Callbacks: what a user of `Trainer` does beside the training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from trainer.evaluation import Metrics
    from trainer.session import Session


class Callback:
    """The base of callbacks; a subclass overrides what it needs.

    Every process of a run calls the methods at the same steps. `session` has the state of the run:
    `session.step`, `session.num_steps`, `session.config`, `session.tasks`,
    `session.learner.grouping.probabilities()` [N,K], `session.engine.module` (the network) and
    `session.accelerator`. `session.request_stop()` asks the run to save and stop after the next
    step. A callback that changes none of it does not change what is learned.
    """

    def on_train_begin(self, session: Session) -> None:
        """Act before the first step of a start."""

    def on_step_end(self, session: Session) -> None:
        """Act after a step, its log record, evaluation and save."""

    def on_log(self, session: Session, values: Mapping[str, Any]) -> None:
        """Act on the values of a log record: `loss`, `losses` by task, `temperature`, `lr`, ..."""

    def on_evaluate(self, session: Session, metrics: Metrics) -> None:
        """Act on the metrics of an evaluation, by task and name."""

    def on_save(self, session: Session) -> None:
        """Act when the checkpoint of a step is being written."""

    def on_train_end(self, session: Session, metrics: Metrics) -> None:
        """Act after the last evaluation of the run; a run that is stopped does not get there."""


class Callbacks(Callback):
    """Several callbacks as one, called in their order."""

    def __init__(self, callbacks: Sequence[Callback] = ()) -> None:
        self._callbacks = tuple(callbacks)

    def on_train_begin(self, session: Session) -> None:
        """Call all of them."""
        for callback in self._callbacks:
            callback.on_train_begin(session)

    def on_step_end(self, session: Session) -> None:
        """Call all of them."""
        for callback in self._callbacks:
            callback.on_step_end(session)

    def on_log(self, session: Session, values: Mapping[str, Any]) -> None:
        """Call all of them."""
        for callback in self._callbacks:
            callback.on_log(session, values)

    def on_evaluate(self, session: Session, metrics: Metrics) -> None:
        """Call all of them."""
        for callback in self._callbacks:
            callback.on_evaluate(session, metrics)

    def on_save(self, session: Session) -> None:
        """Call all of them."""
        for callback in self._callbacks:
            callback.on_save(session)

    def on_train_end(self, session: Session, metrics: Metrics) -> None:
        """Call all of them."""
        for callback in self._callbacks:
            callback.on_train_end(session, metrics)
