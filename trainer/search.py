"""The search for groups before the training: one network of all tasks is observed, or pairs are."""

from __future__ import annotations

import logging
from functools import partial

from accelerate import Accelerator

from trainer.config.config import Config
from trainer.loop import train
from trainer.monitoring.status import reported
from trainer.pair_search import search_pairs
from trainer.recipes.hoa import HoaGroups
from trainer.recipes.learner import recipe_of
from trainer.recipes.mean_affinity import mean_affinity
from trainer.recipes.searched import (
    ObservedGroups,
    SearchSection,
    groups_file,
    search_folder,
    write_searched,
)
from trainer.recipes.task_losses import check_engine
from trainer.run_data import RunData
from trainer.run_folder import RunFolder
from trainer.search_config import search_config
from trainer.session import start_session

logger = logging.getLogger(__name__)


def search_groups(config: Config, accelerator: Accelerator, data: RunData | None = None) -> None:
    """Write the groups of a recipe that searches; every rank calls it.

    The search is one or several separate runs in `run.out/search`, with the same data, seed and
    optimizer. A restart continues them, and keeps the groups if they are written already.

    Raises:
        UserError: The folders hold another run, or the recipe cannot search with this engine or
            for so many tasks.
        Preempted: As `train`.
    """
    RunFolder(config.run.out).check(config)
    if issubclass(recipe_of(config), HoaGroups):
        search_pairs(config, accelerator, data)
    else:
        _observe_network(config, accelerator, data)
    accelerator.wait_for_everyone()  # the training reads the file


def _observe_network(config: Config, accelerator: Accelerator, data: RunData | None) -> None:
    """Write the groups by what one network of all tasks shows while it is trained."""
    recipe, section = recipe_of(config), config.grouping
    assert issubclass(recipe, ObservedGroups) and isinstance(section, SearchSection)
    search, path = _search_config(config, section), groups_file(config)
    RunFolder(search.run.out).check(search)
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
            write_searched(config, groups, affinity, [task.name for task in session.tasks])
            logger.info("recipe %s: %d groups are in %s", section.recipe, len(groups), path)


def _search_config(config: Config, section: SearchSection) -> Config:
    """Return the configuration of the search.

    Its network is not used, so that only one batch is evaluated at its end.
    """
    length = {} if section.search_steps is None else {"steps": section.search_steps, "epochs": None}
    return search_config(
        config,
        run={"out": str(search_folder(config)), **length},
        grouping={"recipe": "multitask"},
        eval={"limit": config.eval.batch_size},
    )
