"""The search of the recipe `hoa`: every pair of tasks is trained, and compared on held-out samples.

Legend: N tasks.
"""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from accelerate import Accelerator

from trainer.config.config import Config
from trainer.errors import UserError
from trainer.evaluation import evaluate_losses
from trainer.json_file import to_number, write_json
from trainer.loop import noted, train
from trainer.monitoring.status import reported
from trainer.recipes.groups import Groups
from trainer.recipes.hoa import (
    SHARE,
    HoaSection,
    best_groups,
    check_size,
    pair_gains,
    pair_losses,
    pair_rounds,
)
from trainer.recipes.searched import groups_file, search_folder, write_searched
from trainer.run_data import RunData, open_data
from trainer.run_folder import RunFolder
from trainer.search_config import search_config
from trainer.session import Session, start_session

logger = logging.getLogger(__name__)

_LOSSES = "losses.json"


def search_pairs(config: Config, accelerator: Accelerator, data: RunData | None) -> None:
    """Train all pairs and single tasks, and write the best groups; every rank calls it.

    Each round is a run in `run.out/search/round-NN` whose branches are the networks. A round that
    has ended keeps its losses, so that a restart continues with the first one that has not.

    Raises:
        UserError: The folders hold another run, or there are too many tasks.
        Preempted: As `train`.
    """
    names = [task.name for task in (data or open_data(config)).tasks]
    check_size(config, len(names))
    rounds = pair_rounds(len(names))
    runs = [
        round_config(config, number, [[names[task] for task in group] for group in groups])
        for number, groups in enumerate(rounds, start=1)
    ]
    for run in runs:
        RunFolder(run.run.out).check(run)
    recipe, path = config.grouping.recipe, groups_file(config)
    if path.exists():
        logger.info("recipe %s: the groups are in %s already", recipe, path)
        return
    for number, run in enumerate(runs, start=1):
        logger.info("recipe %s: run %d of %d of the search for groups", recipe, number, len(runs))
        if not (run.run.out / _LOSSES).exists():
            _train_round(run, accelerator, data)
        if accelerator.is_main_process:  # its parameters are not needed any more
            shutil.rmtree(RunFolder(run.run.out).checkpoints, ignore_errors=True)
    if accelerator.is_main_process:
        groups = _write_groups(config, rounds, runs, names)
        logger.info("recipe %s: %d groups are in %s", recipe, len(groups), path)


def round_config(config: Config, number: int, groups: list[list[str]]) -> Config:
    """Return the configuration of a round, in which each group is a network of its own.

    All networks begin with the same weights of the encoder, so that their losses differ by the
    tasks and not by their initial weights.

    Args:
        config: Of the training.
        number: Of the round, from 1.
        groups: Names of the tasks of each network.
    """
    section = config.grouping
    assert isinstance(section, HoaSection), "the recipe has this section"
    length: dict[str, Any]
    if section.search_steps is not None:
        length = {"steps": section.search_steps, "epochs": None}
    elif config.run.steps is not None:
        length = {"steps": max(1, round(SHARE * config.run.steps))}
    else:
        assert config.run.epochs is not None, "the section checks it"
        length = {"epochs": SHARE * config.run.epochs}
    return search_config(
        config,
        run={"out": str(search_folder(config) / f"round-{number:02d}"), **length},
        grouping={"recipe": "fixed", "groups": groups},
        data={"eval_split": section.search_split or config.data.eval_split},
        model={"branch_init": "copies"},
        log={"trackers": []},
    )


def _train_round(run: Config, accelerator: Accelerator, data: RunData | None) -> None:
    main = accelerator.is_main_process
    with reported(run.run.out, main=main), start_session(run, accelerator, data) as session:
        train(session)
        losses = _held_out_losses(session)
        if main:
            content = {"compared_on": _compared_on(run), "losses": losses}
            write_json(run.run.out / _LOSSES, content, indent=1)
        accelerator.wait_for_everyone()


def _held_out_losses(session: Session) -> dict[str, float]:
    """Return the losses of the tasks on the evaluation split, NaN without labels."""
    accelerator = session.accelerator
    batches = session.data.eval_batches(
        rank=accelerator.process_index, world_size=accelerator.num_processes
    )
    losses = evaluate_losses(
        session.engine,
        noted(batches, f"step {session.step}, comparing pairs"),
        session.learner.chosen_heads(),
    )
    names = [task.name for task in session.tasks]
    return dict(zip(names, losses.tolist(), strict=True))


def _compared_on(run: Config) -> dict[str, Any]:
    """Return on which samples a round is compared; a resume may change it in the configuration."""
    return {"split": run.data.eval_split, "limit": run.eval.limit}


def _write_groups(
    config: Config, rounds: Sequence[Groups], runs: Sequence[Config], names: Sequence[str]
) -> Groups:
    losses = pair_losses(rounds, [_read_losses(run, names) for run in runs])
    unknown = [name for name, loss in zip(names, losses.diagonal(), strict=True) if np.isnan(loss)]
    if unknown:
        logger.warning(
            "recipe %s: the split %r has no labels of %s: their gains count as 0",
            config.grouping.recipe,
            runs[0].data.eval_split,
            ", ".join(unknown),
        )
    gains = pair_gains(losses)
    groups = best_groups(gains, config.model.branches)
    write_searched(config, groups, gains, names, losses=losses.tolist())
    return groups


def _read_losses(run: Config, names: Sequence[str]) -> np.ndarray:
    """Return the losses [N] of a round that has ended.

    Raises:
        UserError: The file is damaged, or of other samples than this start compares.
    """
    path: Path = run.run.out / _LOSSES
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        found = content["compared_on"]
        losses = np.array([to_number(content["losses"][name]) for name in names], dtype=float)
    except (OSError, ValueError, TypeError, KeyError, RecursionError) as error:
        raise UserError(
            f"{path}: does not hold the losses of a round ({error!r}); delete it to train the "
            "round again"
        ) from None
    if found != _compared_on(run):
        raise UserError(
            f"{path}: found the losses of {found}, this start compares {_compared_on(run)}; set "
            "grouping.search_split, data.eval_split and eval.limit as they were, or delete the "
            "file to train the round again"
        )
    return losses
