"""Checkpoints: whole or absent, by parameter name, readable by any engine and world size."""

from __future__ import annotations

import json
import logging
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import Tensor

from trainer.checkpoints.files import (
    GROUPING,
    MOMENTS_FILE,
    PROGRESS,
    WEIGHTS,
    checkpoints,
    find_fault,
    folder_of_step,
    publish_checkpoint,
    rotate,
)
from trainer.checkpoints.state import NamedState
from trainer.engines.optim import MOMENTS
from trainer.errors import UserError

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Progress:
    """Where a run stands.

    Attributes:
        step: Optimizer steps done.
        optimizer_step: Updates made by the engine's optimizer.
        logits_updates: Updates of the logits.
        network: `MultiTaskNetwork.config()` of the network at this step.
        data: Digest of the shards' manifest.
        metrics_bytes: Length of `metrics.jsonl`.
        loss_scale: State of the fp16 loss scaler, empty in other precisions.
        replaced: Damaged samples that were replaced so far.
        skipped: Steps that were left out so far.
        plateau: State of the schedule `plateau`, empty for others.
        dataset: Name and size of the data set, for messages.
        trackers: Ids of the tracker runs, by name of the tracker.
    """

    step: int
    optimizer_step: int
    logits_updates: int
    network: dict[str, Any]
    data: str
    metrics_bytes: int
    loss_scale: dict[str, float]
    replaced: int = 0
    skipped: int = 0
    plateau: dict[str, float | None] = field(default_factory=dict)
    dataset: str = ""
    trackers: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Checkpoint:
    """All that a run needs to go on: one that was read back, or the snapshot of a running one.

    Attributes:
        grouping: What the learner of the groups and the run's observer keep, by name.
    """

    progress: Progress
    state: NamedState
    grouping: dict[str, Tensor]


def save_checkpoint(
    folder: Path, checkpoint: Checkpoint, *, keep_last: int, keep_every: int | None = None
) -> Path:
    """Write a checkpoint under a temporary name, sync it, rename it, and only then drop old ones.

    Args:
        keep_last: Number of the newest checkpoints that are kept.
        keep_every: Checkpoints at multiples of this step are kept for good.

    Returns:
        The checkpoint's folder.

    Raises:
        ValueError: A weight is not finite; nothing is written.
        OSError, SafetensorError: The disk is full or cannot be written; all older ones are left.
    """
    weights = checkpoint.state.weights
    broken = [name for name, value in weights.items() if not value.isfinite().all()]
    if broken:
        raise ValueError(f"weights of {broken[0]} (and {len(broken) - 1} more) are not finite")
    final = folder_of_step(folder, checkpoint.progress.step)

    def write(partial: Path) -> None:
        moments = checkpoint.state.moments
        named = {f"{m}/{name}": value for m in MOMENTS for name, value in moments[m].items()}
        for file, tensors in (
            (WEIGHTS, weights),
            (MOMENTS_FILE, named),
            (GROUPING, checkpoint.grouping),
        ):
            save_file({n: v.contiguous() for n, v in tensors.items()}, partial / file)
        (partial / PROGRESS).write_text(json.dumps(asdict(checkpoint.progress)))

    publish_checkpoint(final, write)
    rotate(final, keep_last=keep_last, keep_every=keep_every)
    return final


def load_checkpoint(path: Path, *, verified: bool = False) -> Checkpoint:
    """Read a checkpoint folder.

    Args:
        verified: Whether it is known to be whole, so that nothing needs to be hashed.

    Raises:
        UserError: It is not whole or not readable; the message names the file and what is wrong.
    """
    fault = None if verified else _fault(path)
    if fault is not None:
        raise UserError(f"checkpoint {path}: {fault}")
    try:
        progress = Progress(**json.loads((path / PROGRESS).read_text()))
        state = NamedState(load_file(path / WEIGHTS))
        moments = load_file(path / MOMENTS_FILE)
        grouping = load_file(path / GROUPING)
    except OSError as error:
        raise UserError(f"checkpoint {path}: cannot be read: {error}") from None
    except TypeError as error:  # keys of another version
        raise UserError(f"checkpoint {path}: {PROGRESS} cannot be used: {error}") from None
    for name, value in moments.items():
        moment, _, parameter = name.partition("/")
        state.moments[moment][parameter] = value
    state.optimizer_step = progress.optimizer_step
    return Checkpoint(progress, state, grouping)


def newest_checkpoint(folder: Path) -> Path | None:
    """The newest whole checkpoint; says which ones it passed over. None if there is no checkpoint.

    Raises:
        UserError: There are checkpoints, and none is whole, or one cannot be read: a fault of the
            file system is no reason to pass over what it holds.
    """
    found = checkpoints(folder)
    for path in reversed(found):
        fault = _fault(path)
        if fault is None:
            return path
        logger.warning("passing over checkpoint %s: %s", path, fault)
    if found:
        raise UserError(
            f"{folder}: none of {len(found)} checkpoints is whole; move them away to start anew"
        )
    return None


def _fault(path: Path) -> str | None:
    try:
        return find_fault(path)
    except OSError as error:
        raise UserError(f"checkpoint {path}: cannot be read: {error}") from None
