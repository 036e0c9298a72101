"""Callbacks: what a user of `Trainer` does beside the training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from accelerate import Accelerator

    from model.tasks.spec import TaskSpec
    from trainer.config.config import Config
    from trainer.engines.engine import Engine
    from trainer.evaluation import Metrics
    from trainer.recipes.learner import GroupLearner


class Training(Protocol):
    """What a callback can read of a run that trains.

    Attributes:
        config: Of the run.
        accelerator: Of this process.
        engine: `engine.module` is the network.
        learner: `learner.grouping.probabilities()` [N,K] are the distributions of the tasks.
        step: Optimizer steps done.
    """

    config: Config
    accelerator: Accelerator
    engine: Engine
    learner: GroupLearner
    step: int

    @property
    def tasks(self) -> tuple[TaskSpec, ...]:
        """The N tasks."""

    @property
    def num_steps(self) -> int:
        """Optimizer steps of the whole run."""

    def request_stop(self) -> None:
        """Ask the run to save and stop after the next step."""


class Callback:
    """The base of callbacks; a subclass overrides what it needs.

    Every process of a run calls the methods at the same steps. A callback that changes nothing of
    `session` does not change what is learned.
    """

    def on_train_begin(self, session: Training) -> None:
        """Act before the first step of a start."""

    def on_step_end(self, session: Training) -> None:
        """Act after a step, its log record, evaluation and save."""

    def on_log(self, session: Training, values: Mapping[str, Any]) -> None:
        """Act on the values of a log record: `loss`, `losses` by task, `temperature`, `lr`, ..."""

    def on_evaluate(self, session: Training, metrics: Metrics) -> None:
        """Act on the metrics of an evaluation, by task and name."""

    def on_save(self, session: Training) -> None:
        """Act when the checkpoint of a step is being written."""

    def on_train_end(self, session: Training, metrics: Metrics) -> None:
        """Act after the last evaluation of the run; a run that is stopped does not get there."""


class Callbacks(Callback):
    """Several callbacks as one, called in their order."""

    def __init__(self, callbacks: Sequence[Callback] = ()) -> None:
        self._callbacks = tuple(callbacks)

    def on_train_begin(self, session: Training) -> None:
        """Call all of them."""
        for callback in self._callbacks:
            callback.on_train_begin(session)

    def on_step_end(self, session: Training) -> None:
        """Call all of them."""
        for callback in self._callbacks:
            callback.on_step_end(session)

    def on_log(self, session: Training, values: Mapping[str, Any]) -> None:
        """Call all of them."""
        for callback in self._callbacks:
            callback.on_log(session, values)

    def on_evaluate(self, session: Training, metrics: Metrics) -> None:
        """Call all of them."""
        for callback in self._callbacks:
            callback.on_evaluate(session, metrics)

    def on_save(self, session: Training) -> None:
        """Call all of them."""
        for callback in self._callbacks:
            callback.on_save(session)

    def on_train_end(self, session: Training, metrics: Metrics) -> None:
        """Call all of them."""
        for callback in self._callbacks:
            callback.on_train_end(session, metrics)
