"""The recipe `single_task` in a comparison: what its tasks share, and runs of some tasks each."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

from dmtg.plugins import LOSS_WEIGHTINGS
from trainer.compare.cells import Cell
from trainer.config.config import Config
from trainer.config.loading import load_config
from trainer.config.optim import PlateauSchedule
from trainer.errors import UserError
from trainer.run_data import open_data

SINGLE_TASK = "single_task"
_REPLACED = ("run.out=", "tasks.", "loss_weights.weights")


def in_parts(cell: Cell, config: Path, size: int) -> list[Cell]:
    """Return the cells that train some of the tasks each, in place of one that trains all.

    Args:
        cell: Its arguments are overrides only.
        config: YAML file of the cell.
        size: Number of tasks of each.

    Raises:
        UserError: The data source does not read the tasks from the section `tasks`.
        DataError: The data cannot be read.
    """
    whole = load_config(config, cell.arguments)
    tasks = open_data(whole).tasks
    chunks = [tasks[start : start + size] for start in range(0, len(tasks), size)]
    weights = getattr(whole.loss_weights, "weights", None)
    parts = []
    for number, chunk in enumerate(chunks, 1):
        names = [task.name for task in chunk]
        folder = cell.folder.with_name(f"{cell.folder.name}-part-{number}-of-{len(chunks)}")
        settings = [each for each in cell.arguments if not each.startswith(_REPLACED)]
        settings += [
            f"run.out={folder}",
            "tasks.preset=null",
            f"tasks.names={json.dumps(names)}",
            f"tasks.define={json.dumps({task.name: task.to_dict() for task in chunk})}",
        ]
        if weights is not None:
            given = {name: weights[name] for name in names if name in weights}
            settings.append(f"loss_weights.weights={json.dumps(given)}")
        part = (number, len(chunks))
        parts.append(replace(cell, folder=folder, arguments=tuple(settings), part=part))
    found = [task.name for task in open_data(load_config(config, parts[0].arguments)).tasks]
    if found != [task.name for task in chunks[0]]:
        raise UserError(
            "--single-task-chunk: the data source of this configuration does not take its tasks "
            "from tasks.names"
        )
    return parts


def shared_by_tasks(config: Config) -> list[str]:
    """Return what the tasks of a run of `single_task` share, as phrases with the keys.

    Without any of it, the run computes what a run for each task would from the same weights.
    """
    optim, model = config.optim, config.model
    shared = {
        "the trunk (model.trunk_depth)": model.trunk_depth > 0,
        "the scale of gradients (model.gradient_scale)": model.gradient_scale != "none",
        "the clipping of gradients (optim.max_grad_norm)": optim.max_grad_norm is not None,
        "a schedule that follows the total loss (optim.schedule)": isinstance(
            optim.schedule, PlateauSchedule
        ),
        "loss weights (loss_weights)": not LOSS_WEIGHTINGS[config.loss_weights.method].constant,
        "the loss scale of fp16 (run.precision)": config.run.precision == "fp16",
    }
    return [phrase for phrase, is_shared in shared.items() if is_shared]
