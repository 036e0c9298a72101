"""Checkpoints: whole or absent, by parameter name, readable by any engine and world size."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import Tensor

from trainer.errors import UserError
from trainer.optim import MOMENTS
from trainer.state import NamedState

logger = logging.getLogger(__name__)

_PREFIX = "step-"
_POINTER = "latest"
_FILES = "files.json"  # sizes and hashes of the others


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
        plateau: State of the schedule `plateau`, empty for others.
    """

    step: int
    optimizer_step: int
    logits_updates: int
    network: dict[str, Any]
    data: str
    metrics_bytes: int
    loss_scale: dict[str, float]
    replaced: int = 0
    plateau: dict[str, float | None] = field(default_factory=dict)


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint that was read back."""

    progress: Progress
    state: NamedState
    grouping: dict[str, Tensor]


def save_checkpoint(
    folder: Path,
    progress: Progress,
    state: NamedState,
    grouping: dict[str, Tensor],
    *,
    keep_last: int,
) -> Path:
    """Write a checkpoint under a temporary name, sync it, rename it, and only then drop old ones.

    Raises:
        ValueError: A weight is not finite; nothing is written.
    """
    broken = [name for name, value in state.weights.items() if not value.isfinite().all()]
    if broken:
        raise ValueError(f"weights of {broken[0]} (and {len(broken) - 1} more) are not finite")
    final = folder / f"{_PREFIX}{progress.step:09d}"
    partial = folder / f"{final.name}.partial"
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    save_file(_contiguous(state.weights), partial / "weights.safetensors")
    moments = {f"{m}/{name}": value for m in MOMENTS for name, value in state.moments[m].items()}
    save_file(_contiguous(moments), partial / "moments.safetensors")
    save_file(_contiguous(grouping), partial / "grouping.safetensors")
    (partial / "progress.json").write_text(json.dumps(asdict(progress)))
    files = {path.name: _fingerprint(path) for path in sorted(partial.iterdir())}
    (partial / _FILES).write_text(json.dumps(files))
    for path in (*partial.iterdir(), partial):
        _sync(path)
    shutil.rmtree(final, ignore_errors=True)
    os.replace(partial, final)
    _sync(folder)
    _point(folder, final.name)
    _rotate(folder, final, keep_last)
    return final


def _rotate(folder: Path, newest: Path, keep_last: int) -> None:
    """Keep the newest and those right before it; later steps are what a resume passed over."""
    found = _checkpoints(folder)
    passed_over = [path for path in found if path.name > newest.name]
    older = [path for path in found if path.name <= newest.name][:-keep_last]
    for path in (*passed_over, *older):
        shutil.rmtree(path)


def load_checkpoint(path: Path) -> Checkpoint:
    """Read a checkpoint folder.

    Raises:
        UserError: It is not whole; the message names the file and what is wrong with it.
    """
    fault = _fault(path)
    if fault is not None:
        raise UserError(f"checkpoint {path}: {fault}")
    progress = Progress(**json.loads((path / "progress.json").read_text()))
    state = NamedState(load_file(path / "weights.safetensors"))
    for name, value in load_file(path / "moments.safetensors").items():
        moment, _, parameter = name.partition("/")
        state.moments[moment][parameter] = value
    state.optimizer_step = progress.optimizer_step
    return Checkpoint(progress, state, load_file(path / "grouping.safetensors"))


def newest_checkpoint(folder: Path) -> Path | None:
    """The newest whole checkpoint; says which ones it passed over. None if there is no checkpoint.

    Raises:
        UserError: There are checkpoints, and none is whole.
    """
    found = _checkpoints(folder)
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


def check_fits(
    checkpoint: Checkpoint, tasks: list[dict[str, Any]], data: str, source: Path
) -> None:
    """Refuse to continue from a checkpoint of other tasks or other data.

    Raises:
        UserError: Naming what differs.
    """
    found = [task["name"] for task in checkpoint.progress.network["tasks"]]
    wanted = [task["name"] for task in tasks]
    if found != wanted:
        raise UserError(f"checkpoint {source}: its tasks are {found}, the run's are {wanted}")
    for old, new in zip(checkpoint.progress.network["tasks"], tasks, strict=True):
        if json.dumps(old, sort_keys=True) != json.dumps(new, sort_keys=True):
            raise UserError(f"checkpoint {source}: task {new['name']} was {old}, is {new}")
    if checkpoint.progress.data != data:
        raise UserError(
            f"checkpoint {source}: it was trained on a manifest with digest "
            f"{checkpoint.progress.data:.12}, data.shards has {data:.12}"
        )


def _contiguous(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: value.contiguous().cpu() for name, value in tensors.items()}


def _checkpoints(folder: Path) -> list[Path]:
    return sorted(p for p in folder.glob(f"{_PREFIX}*") if p.is_dir() and p.suffix != ".partial")


def _fault(path: Path) -> str | None:
    """What is wrong with a checkpoint folder; None if it is whole."""
    try:
        files = json.loads((path / _FILES).read_text())
    except (OSError, ValueError):
        return f"{_FILES} is missing or unreadable"
    for name, expected in files.items():
        if not (path / name).is_file():
            return f"{name} is missing"
        found = _fingerprint(path / name)
        if found != expected:
            return f"{name} has {found['bytes']} bytes or another content than when written"
    return None


def _fingerprint(path: Path) -> dict[str, Any]:
    with open(path, "rb") as file:
        digest = hashlib.file_digest(file, "sha256") if hasattr(hashlib, "file_digest") else None
        if digest is None:  # Python 3.10
            digest = hashlib.sha256()
            while block := file.read(1 << 20):
                digest.update(block)
    return {"bytes": path.stat().st_size, "sha256": digest.hexdigest()}


def _point(folder: Path, name: str) -> None:
    partial = folder / f"{_POINTER}.partial"
    partial.write_text(name)
    _sync(partial)
    os.replace(partial, folder / _POINTER)
    _sync(folder)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
