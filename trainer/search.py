"""The search for groups before the training: one network of all tasks is trained and observed."""

from __future__ import annotations

import logging
from functools import partial
from typing import Any

import numpy as np
from accelerate import Accelerator

from trainer.config.config import Config
from trainer.config.loading import parse_config
from trainer.json_file import write_json
from trainer.loop import train
from trainer.monitoring.status import reported
from trainer.recipes.groups import Groups
from trainer.recipes.learner import recipe_of
from trainer.recipes.mean_affinity import mean_affinity
from trainer.recipes.searched import SearchedGroups, SearchSection, groups_file, search_folder
from trainer.recipes.task_losses import check_engine
from trainer.run_data import RunData
from trainer.run_folder import RunFolder
from trainer.session import start_session

logger = logging.getLogger(__name__)


def search_groups(config: Config, accelerator: Accelerator, data: RunData | None = None) -> None:
    """Write the groups of a recipe that searches; every rank calls it.

    The search is a separate run in `run.out/search`, with the recipe `multitask` and the same data,
    seed and optimizer. A restart continues it, and keeps the groups if they are written already.

    Raises:
        UserError: The folders hold another run, or the engine is ZeRO 2 or 3.
        Preempted: As `train`.
    """
    recipe, section = recipe_of(config), config.grouping
    assert issubclass(recipe, SearchedGroups) and isinstance(section, SearchSection)
    search, path = _search_config(config, section), groups_file(config)
    for each in (config, search):
        RunFolder(each.run.out).check(each)
    if path.exists():
        logger.info("recipe %s: the groups are in %s already", section.recipe, path)
        return
    check_engine(accelerator, section.recipe)
    with (
        reported(search.run.out, main=accelerator.is_main_process),
        start_session(search, accelerator, data) as session,
    ):
        train(session, partial(recipe.observe, section))
        if accelerator.is_main_process:
            affinity = mean_affinity(session)
            groups = recipe.partition(affinity, config.model.branches)
            write_json(path, _describe(groups, affinity, [task.name for task in session.tasks]))
            logger.info("recipe %s: %d groups are in %s", section.recipe, len(groups), path)
    accelerator.wait_for_everyone()  # the training reads the file


def _search_config(config: Config, section: SearchSection) -> Config:
    """Return the configuration of the search.

    Its network is not used, so that only one batch is evaluated at its end.
    """
    tree = config.model_dump(mode="json")
    tree["run"]["out"] = str(search_folder(config))
    tree["grouping"] = {"recipe": "multitask"}
    tree["eval"] |= {"every": 0, "limit": tree["eval"]["batch_size"]}
    tree["finetune"] = {}
    tree["run"]["profile"] = None
    if len(config.model.init_from) > 1:  # a file for each branch of the training; here is one
        tree["model"]["init_from"] = []
    if section.search_steps is not None:
        tree["run"] |= {"steps": section.search_steps, "epochs": None}
    return parse_config(tree, "the search for groups")


def _describe(groups: Groups, affinity: np.ndarray, names: list[str]) -> dict[str, Any]:
    return {
        "groups": [[names[task] for task in group] for group in groups],
        "tasks": names,
        "affinity": [[float(f"{value:.6g}") for value in row] for row in affinity.tolist()],
    }
