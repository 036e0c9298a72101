"""Finds the checkpoint that a run goes on from, and refuses one of another run."""

from __future__ import annotations

import json
import logging
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from accelerate.utils import broadcast_object_list

from model.encoders.build import encoder_family
from trainer.checkpoints.checkpoint import Checkpoint, Progress, load_checkpoint, newest_checkpoint
from trainer.config.config import Config
from trainer.engines.agreement import first_message
from trainer.errors import UserError
from trainer.run_data import RunData
from trainer.run_folder import RunFolder

logger = logging.getLogger(__name__)


def resume_checkpoint(
    config: Config, folder: RunFolder, data: RunData, accelerator: Accelerator
) -> Checkpoint | None:
    """Return the newest whole checkpoint of a run, None for a new one; every rank must call it.

    Rank 0 alone looks at all checkpoints and hashes them. The others read the one that it chose,
    so the folder must be on a file system that they share.

    Raises:
        UserError: On every rank: none is whole, one rank cannot read it, or it is of another run.
    """
    chosen, message = broadcast_object_list(list(_choose(folder.checkpoints, accelerator)))
    if message is not None:
        raise UserError(message)
    if chosen is None:
        return None
    checkpoint = None
    try:
        checkpoint = load_checkpoint(chosen, verified=True)
        check_fits(
            checkpoint.progress,
            chosen,
            tasks=[task.to_dict() for task in data.tasks],
            encoder=describe_encoder(config),
            digest=data.digest,
            dataset=data.dataset,
        )
    except UserError as error:
        message = str(error)
        if accelerator.num_processes > 1:
            message = f"rank {accelerator.process_index} on {socket.gethostname()}: {message}"
    message = first_message(accelerator, message)
    if message is not None:
        raise UserError(message)
    logger.info("continuing from %s", chosen)
    return checkpoint


def _choose(checkpoints: Path, accelerator: Accelerator) -> tuple[Path | None, str | None]:
    """Return on rank 0 the checkpoint to continue from, or why there is none."""
    if not accelerator.is_main_process:
        return None, None
    try:
        newest = newest_checkpoint(checkpoints)
    except (UserError, OSError) as error:
        return None, str(error)
    return newest, None


def describe_encoder(config: Config) -> dict[str, Any]:
    """Return `Encoder.config` of a configuration, without the options of a pretrained encoder."""
    section = config.model.encoder
    encoder: dict[str, Any] = {
        "name": section.name,
        "image_size": list(config.data.image_size),
        "trunk_depth": config.model.trunk_depth,
    }
    if section.pretrained is not None:  # its folder may be gone
        return encoder
    try:
        family = encoder_family(section.name, section.options, config.data.image_size)
    except ValueError as error:
        raise UserError(str(error)) from None
    return {**encoder, "options": family.options}


def check_fits(
    progress: Progress,
    source: Path,
    *,
    tasks: list[dict[str, Any]],
    encoder: dict[str, Any],
    digest: str,
    dataset: str,
) -> None:
    """Refuse to continue from a checkpoint of other tasks, another encoder or other data.

    Args:
        progress: Of the checkpoint.
        source: The checkpoint's folder.
        tasks: Descriptions of the run's tasks.
        encoder: Keyword arguments of the run's encoder, as far as they are known.
        digest: Of the run's manifest.
        dataset: The data set in words.

    Raises:
        UserError: Naming all that differs, with both values.
    """
    was, is_ = progress.network, json.loads(json.dumps({"tasks": tasks, "encoder": encoder}))
    names = [[task["name"] for task in tree["tasks"]] for tree in (was, is_)]
    differences = []
    if names[0] != names[1]:
        differences.append(f"its tasks are {names[0]}, the run's are {names[1]}")
    new_tasks = {task["name"]: task for task in is_["tasks"]}
    for task in was["tasks"]:
        new = new_tasks.get(task["name"], task)
        differences += _changes(task, new, f"task {task['name']}: ")
    known = {key: was["encoder"].get(key) for key in is_["encoder"]}
    differences += _changes(known, is_["encoder"], "model.encoder.")
    if progress.data != digest:
        differences.append(
            f"data.shards was {progress.dataset} with manifest {progress.data:.12}, "
            f"is {dataset} with manifest {digest:.12}"
        )
    if differences:
        listed = "\n".join(f"  {difference}" for difference in differences)
        raise UserError(f"checkpoint {source} is of another run:\n{listed}")


def _changes(old: dict[str, Any], new: dict[str, Any], prefix: str) -> Iterator[str]:
    for key in dict.fromkeys((*old, *new)):
        was, is_ = old.get(key), new.get(key)
        if isinstance(was, dict) and isinstance(is_, dict):
            yield from _changes(was, is_, f"{prefix}{key}.")
        elif was != is_:
            yield f"{prefix}{key} was {was!r}, is {is_!r}"
