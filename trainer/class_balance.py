"""Replace `auto` in the loss options of tasks by numbers that the training labels give."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace

from dmtg.names import shortened
from dmtg.plugins import LOSSES
from model.kinds.kind import get_kind
from model.losses.options import AUTO
from model.tasks.spec import TaskSpec
from trainer.config.config import Config
from trainer.errors import UserError
from trainer.run_data import CountsClasses, RunData

logger = logging.getLogger(__name__)


def balanced_tasks(config: Config, data: RunData) -> tuple[TaskSpec, ...]:
    """Return the tasks of a run, with numbers in place of `auto`.

    Raises:
        UserError, DataError: The classes cannot be counted.
    """
    waiting = [task for task in data.tasks if has_auto(task)]
    if not waiting:
        return data.tasks
    if not isinstance(data, CountsClasses):
        raise UserError(
            f"task {waiting[0].name!r}: loss_options: 'auto' needs the number of labels of each "
            f"class, which data.source {config.data.source!r} does not have; give numbers"
        )
    counts = data.class_counts(waiting)
    for task in waiting:
        names = enumerate(get_kind(task.kind).class_names(task))
        found = counts[task.name]
        empty = [name for n, name in names if not found[n] and n != task.ignore_index]
        if empty:
            logger.info(
                "task %s: no training label of class %s: its weight is 1",
                task.name,
                shortened(", ".join(empty)),
            )
    return tuple(_with_counts(task, counts.get(task.name, ())) for task in data.tasks)


def equally_frequent(tasks: Sequence[TaskSpec]) -> tuple[TaskSpec, ...]:
    """Return the tasks with the numbers for `auto` that equally frequent classes would give."""
    return tuple(_with_counts(task, [1] * get_kind(task.kind).num_names(task)) for task in tasks)


def has_auto(task: TaskSpec) -> bool:
    """Return whether an option of the task's loss is `auto`."""
    return AUTO in task.loss_options.values()


def _with_counts(task: TaskSpec, counts: Sequence[int]) -> TaskSpec:
    if not has_auto(task):
        return task
    options: Mapping[str, object] = {
        name: _from_counts(task, name, counts) if value == AUTO else value
        for name, value in task.loss_options.items()
    }
    return replace(task, loss_options=options)


def _from_counts(task: TaskSpec, name: str, counts: Sequence[int]) -> float | tuple[float, ...]:
    option = LOSSES[task.loss].options[name]
    return option.from_counts(counts)
