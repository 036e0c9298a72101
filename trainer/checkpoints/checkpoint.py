"""Write and read checkpoints: by parameter name, for any engine and number of processes."""

from __future__ import annotations

import json
import logging
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from pydantic import NonNegativeInt, TypeAdapter, ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from dmtg.names import shortened
from trainer.checkpoints.files import (
    GROUPING,
    MOMENTS_FILE,
    PROGRESS,
    WEIGHTS,
    checkpoints,
    find_damage,
    folder_of_step,
    publish_checkpoint,
    rotate,
)
from trainer.checkpoints.migration import (
    VERSION,
    check_version,
    convert_grouping,
    convert_parameters,
    convert_progress,
)
from trainer.checkpoints.state import NamedState
from trainer.engines.optim import MOMENTS
from trainer.errors import UserError

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Progress:
    """The progress of a run.

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
        search_steps: Steps of the run until every task has one head; 0 if they were not stored.
        grouping_steps: Those at the first start, of which the grouping's schedule has fractions.
    """

    step: NonNegativeInt
    optimizer_step: NonNegativeInt
    logits_updates: NonNegativeInt
    network: dict[str, Any]
    data: str
    metrics_bytes: NonNegativeInt
    loss_scale: dict[str, float]
    replaced: NonNegativeInt = 0
    skipped: NonNegativeInt = 0
    plateau: dict[str, float | None] = field(default_factory=dict)
    dataset: str = ""
    trackers: dict[str, str] = field(default_factory=dict)
    search_steps: NonNegativeInt = 0
    grouping_steps: NonNegativeInt = 0


_PROGRESS = TypeAdapter(Progress)


@dataclass(frozen=True)
class Checkpoint:
    """All that a run needs to continue: read from a folder, or a snapshot of a running one.

    Attributes:
        grouping: What the learner of the groups, the run's observer and the loss weights keep, by
            name.
    """

    progress: Progress
    state: NamedState
    grouping: dict[str, Tensor]


def save_checkpoint(
    folder: Path, checkpoint: Checkpoint, *, keep_last: int, keep_every: int | None = None
) -> Path:
    """Write to a temporary folder, sync, rename, update `latest`, and then delete old checkpoints.

    Args:
        keep_last: Number of the newest checkpoints that are kept.
        keep_every: Checkpoints at multiples of this step are kept for good.

    Returns:
        The checkpoint's folder.

    Raises:
        ValueError: A weight is not finite; nothing is written.
        OSError, SafetensorError: The disk is full or cannot be written; older ones are kept.
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
        progress = {"version": VERSION, **asdict(checkpoint.progress)}
        (partial / PROGRESS).write_text(json.dumps(progress))

    publish_checkpoint(final, write)
    rotate(final, keep_last=keep_last, keep_every=keep_every)
    return final


def load_checkpoint(path: Path, *, verified: bool = False) -> Checkpoint:
    """Read a checkpoint folder.

    Args:
        verified: Whether it is known to be whole, so that nothing needs to be hashed.

    Raises:
        UserError: It is not whole or not readable, or a later version wrote it; the message names
            the file and what is wrong.
    """
    damage = None if verified else _damage(path)
    if damage is not None:
        raise UserError(f"checkpoint {path}: {damage}")
    try:
        progress, version = _read_progress(path)
        weights = convert_parameters(_read_tensors(path, WEIGHTS), version)
        stored = _read_tensors(path, MOMENTS_FILE)
        grouping = convert_grouping(_read_tensors(path, GROUPING), version)
    except OSError as error:
        raise UserError(f"checkpoint {path}: cannot be read: {error}") from None
    moments: dict[str, dict[str, Tensor]] = {moment: {} for moment in MOMENTS}
    for name, value in stored.items():
        moment, _, parameter = name.partition("/")
        if moment not in moments:
            raise UserError(
                f"checkpoint {path}: {MOMENTS_FILE} holds {shortened(repr(name))}, a name must "
                f"begin with {' or '.join(f'{moment}/' for moment in MOMENTS)}"
            )
        moments[moment][parameter] = value
    moments = {moment: convert_parameters(values, version) for moment, values in moments.items()}
    return Checkpoint(progress, NamedState(weights, moments, progress.optimizer_step), grouping)


def load_grouping(path: Path) -> tuple[Progress, dict[str, Tensor]]:
    """Read the progress and the tensors of the learner of a checkpoint, and nothing that is large.

    Raises:
        UserError: They cannot be read, or a later version wrote them.
    """
    try:
        progress, version = _read_progress(path)
        return progress, convert_grouping(_read_tensors(path, GROUPING), version)
    except OSError as error:
        raise UserError(f"checkpoint {path}: cannot be read: {error}") from None


def _read_tensors(path: Path, name: str) -> dict[str, Tensor]:
    try:
        return load_file(path / name)
    except SafetensorError as error:
        raise UserError(f"checkpoint {path}: {name} cannot be used: {error}") from None


def _read_progress(path: Path) -> tuple[Progress, int]:
    """Return the progress of a checkpoint and the version that wrote it."""
    try:
        text = (path / PROGRESS).read_text(encoding="utf-8")
        values = json.loads(text)
        if not isinstance(values, dict):
            raise ValueError(f"{type(values).__name__} found, a JSON object is needed")
        version = check_version(values.pop("version", 1))
        progress = Progress(**convert_progress(values, version))
        _PROGRESS.validate_json(text, strict=True)  # strict mode builds dataclasses from JSON only
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        message = f"{'.'.join(map(str, first['loc']))}: {first['msg']}"
        raise UserError(f"checkpoint {path}: {PROGRESS} cannot be used: {message}") from None
    # A later version wrote it, or it is no progress at all.
    except (AttributeError, KeyError, TypeError, ValueError, RecursionError) as error:
        raise UserError(f"checkpoint {path}: {PROGRESS} cannot be used: {error}") from None
    return progress, version


def newest_checkpoint(folder: Path) -> Path | None:
    """Return the newest whole checkpoint, None if there is none; log those that are passed over.

    Raises:
        UserError: There are checkpoints and none is whole, or one cannot be read: an error of the
            file system does not mean that a checkpoint is damaged.
    """
    candidates = checkpoints(folder)
    for path in reversed(candidates):
        damage = _damage(path)
        if damage is None:
            return path
        logger.warning("passing over checkpoint %s: %s", path, damage)
    if candidates:
        raise UserError(
            f"{folder}: none of {len(candidates)} checkpoints is whole; move them away to start "
            "anew"
        )
    return None


def _damage(path: Path) -> str | None:
    try:
        return find_damage(path)
    except OSError as error:
        raise UserError(f"checkpoint {path}: cannot be read: {error}") from None
