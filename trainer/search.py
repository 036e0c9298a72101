"""Searches the groups before the training: one network of all tasks is trained and watched."""

from __future__ import annotations

import logging
from typing import Any

import numpy as np
from accelerate import Accelerator

from trainer.config.config import Config, parse_config
from trainer.json_file import write_json
from trainer.loop import train
from trainer.monitoring.status import reported
from trainer.recipes.cover import best_cover
from trainer.recipes.grad_tag import cluster, observe_gradients
from trainer.recipes.groups import Groups, found_groups, search_folder
from trainer.recipes.mean_affinity import mean_affinity
from trainer.recipes.tag import observe_look_ahead
from trainer.recipes.task_losses import check_engine
from trainer.run_data import RunData
from trainer.run_folder import RunFolder
from trainer.session import start_session

logger = logging.getLogger(__name__)

_OBSERVERS = {"tag": observe_look_ahead, "grad_tag": observe_gradients}
_PARTITIONS = {"tag": best_cover, "grad_tag": cluster}


def search_groups(config: Config, accelerator: Accelerator, data: RunData | None = None) -> None:
    """Write the groups that the recipe finds, unless an earlier start has; every rank calls it.

    The search is a run of its own in `run.out/search`, with the recipe `multitask` and the same
    data, seed and optimizer. A restart continues it.

    Raises:
        UserError: The folders hold another run, or the engine is ZeRO 2 or 3.
        Preempted: As `train`.
    """
    recipe = config.grouping.recipe
    own, path = _search_config(config), found_groups(config)
    for each in (config, own):
        RunFolder(each.run.out).check(each)
    if path.exists():
        logger.info("recipe %s: the groups in %s were found before", recipe, path)
        return
    check_engine(accelerator, recipe)
    with (
        reported(own.run.out, main=accelerator.is_main_process),
        start_session(own, accelerator, data) as session,
    ):
        train(session, _OBSERVERS[recipe])
        if accelerator.is_main_process:
            affinity = mean_affinity(session)
            groups = _PARTITIONS[recipe](affinity, config.model.branches)
            write_json(path, _describe(groups, affinity, [task.name for task in session.tasks]))
            logger.info("recipe %s: %d groups are in %s", recipe, len(groups), path)
    accelerator.wait_for_everyone()  # the training reads the file


def _search_config(config: Config) -> Config:
    """The run of the search. Its network is not used, so that one batch is evaluated at its end."""
    tree = config.model_dump(mode="json")
    tree["run"]["out"] = str(search_folder(config))
    tree["grouping"]["recipe"] = "multitask"
    tree["eval"] |= {"every": 0, "limit": tree["eval"]["batch"]}
    tree["finetune"] = {}
    tree["run"]["profile"] = None
    if len(config.model.start) > 1:  # a file for each branch of the training; here there is one
        tree["model"]["start"] = []
    if config.grouping.search.steps is not None:
        tree["run"] |= {"steps": config.grouping.search.steps, "epochs": None}
    return parse_config(tree, "grouping.search")


def _describe(groups: Groups, affinity: np.ndarray, names: list[str]) -> dict[str, Any]:
    return {
        "groups": [[names[task] for task in group] for group in groups],
        "tasks": names,
        "affinity": [[float(f"{value:.6g}") for value in row] for row in affinity.tolist()],
    }
