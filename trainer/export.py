"""Export the pruned model of a run, after comparing it with the full model."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from itertools import islice
from pathlib import Path

import torch
from torch import Tensor

from data_pipelines.reading.collate import Batch
from data_pipelines.shards.manifest import Manifest
from dmtg.files import atomic_path
from dmtg.secrets import without_secrets
from model.bundle import load_pruned, save_bundle
from model.heads.layout import Head
from model.network import MultiTaskNetwork
from model.subset import subset
from model.tasks.spec import TaskSpec
from trainer.checkpoints.checkpoint import Checkpoint, load_checkpoint, newest_checkpoint
from trainer.checkpoints.state import load_weights
from trainer.config.config import Config
from trainer.config.loading import parse_config
from trainer.errors import UserError
from trainer.recipes.learner import hard_heads
from trainer.run_data import build_eval_loader, open_data, open_shards
from trainer.run_folder import RunFolder

TOLERANCE = 1e-4  # of outputs of order one: another order of summation, not another model
_NUM_BATCHES = 2


@dataclass(frozen=True)
class ExportReport:
    """What was exported, and how far any output of the compared batches was from the full model's.

    `max_rel_diff` is relative to the task's largest output where that is over one.
    """

    path: str
    step: int
    tasks: int
    groups: int
    parameters: int
    bytes: int
    max_abs_diff: float
    max_rel_diff: float


def export_run(run: Path, out: Path, shards: str | None = None) -> ExportReport:
    """Write the newest checkpoint's model, one head per task, as a safetensors file.

    Args:
        run: Folder of the run.
        out: The file to write.
        shards: Folder or URL of the batches to compare on; None reads the run's data.

    Raises:
        UserError: The run has no whole checkpoint.
        ValueError: The outputs of the reloaded file differ from the full model's; no file is left.
    """
    folder = RunFolder(run)
    config = _config_with(folder, shards)
    newest = newest_checkpoint(folder.checkpoints)
    if newest is None:
        raise UserError(f"{run}: no whole checkpoint in {folder.checkpoints}")
    checkpoint = load_checkpoint(newest)
    full = MultiTaskNetwork.from_config(checkpoint.progress.network).eval()
    load_weights(full, checkpoint.state)
    heads = hard_heads(checkpoint.grouping["logits"], checkpoint.grouping["alive"])
    batches = _comparison_batches(config, full.tasks)
    out.parent.mkdir(parents=True, exist_ok=True)
    with atomic_path(out) as unchecked:
        save_bundle(unchecked, subset(full, heads), _metadata(config, checkpoint))
        pruned = load_pruned(unchecked)
        absolute, relative = _differences(full, heads, pruned.network, batches)
    return ExportReport(
        path=str(out),
        step=checkpoint.progress.step,
        tasks=len(pruned.tasks),
        groups=len(pruned.groups),
        parameters=sum(p.numel() for p in pruned.parameters()),
        bytes=out.stat().st_size,
        max_abs_diff=absolute,
        max_rel_diff=relative,
    )


def _metadata(config: Config, checkpoint: Checkpoint) -> dict[str, object]:
    """Return what users of the file need to know about the run.

    The file may be given away: it holds no folder, no URL and no address of the run or its data.
    """
    progress = checkpoint.progress
    return {
        "trainer_version": program_version(),
        "recipe": config.grouping.recipe,
        "seed": config.run.seed,
        "step": progress.step,
        "steps": config.run.steps,
        "epochs": config.run.epochs,
        "precision": config.run.precision,
        "dataset": _without_folders(progress.dataset),
        "data": _without_folders(progress.data),
        "image_size": progress.network["image_size"],
        "image_mean": progress.network["image_mean"],
        "image_std": progress.network["image_std"],
    }


def program_version() -> str | None:
    """Return the version of the installed program; None where it runs without installation."""
    try:
        return version("dmtg")
    except PackageNotFoundError:
        return None


def _without_folders(text: str) -> str:
    """Return text in which a path or a URL is only its last name."""
    return " ".join(re.split(r"[/\\]", word)[-1] for word in without_secrets(text).split(" "))


def comparison_images(run: Path, tasks: tuple[TaskSpec, ...], shards: str | None) -> Tensor:
    """Return the images of a batch of a run's evaluation split.

    Args:
        run: Folder of the run.
        tasks: Of its model.
        shards: See `export_run`.

    Raises:
        UserError, DataError: The run or its data cannot be used.
    """
    batches = _comparison_batches(_config_with(RunFolder(run), shards), tasks)
    if not batches:
        raise UserError(f"{run}: its evaluation split has no samples to compare the models on")
    return batches[0].images


def _config_with(folder: RunFolder, shards: str | None) -> Config:
    """Return the configuration of a run, with other shards unless they are None."""
    config = folder.load_config()
    if shards is None:
        return config
    tree = config.model_dump(mode="json")
    tree["data"] |= {"source": "shards", "source_options": {}, "shards": shards}
    return parse_config(tree, str(folder.out))


def _comparison_batches(config: Config, tasks: tuple[TaskSpec, ...]) -> list[Batch]:
    loader: Iterable[Batch]
    if config.data.shards is None:
        loader = open_data(config).eval_batches(rank=0, world_size=1)
    else:
        manifest = Manifest.load(open_shards(config))
        loader = build_eval_loader(config, manifest, tasks, rank=0, world_size=1, workers=0)
    return list(islice(loader, _NUM_BATCHES))


@torch.no_grad()
def _differences(
    full: MultiTaskNetwork, heads: list[Head], pruned: MultiTaskNetwork, batches: Iterable[Batch]
) -> tuple[float, float]:
    """Return the largest absolute and relative difference of any output.

    Raises:
        ValueError: It is larger than a changed order of summation can make it.
    """
    absolute = relative = 0.0
    for batch in batches:
        expected = full(batch.images, full.select(heads))["predictions"]
        actual = pruned(batch.images, pruned.select(pruned.heads))["predictions"]
        for name, value in expected.items():
            difference = (actual[name] - value).abs().max()
            absolute = max(absolute, float(difference))
            relative = max(relative, float(difference / value.abs().max().clamp_min(1.0)))
    if not relative <= TOLERANCE:
        raise ValueError(
            f"the exported model's outputs differ from the full model's by {relative:.3g}, "
            f"allowed is {TOLERANCE}; nothing was written"
        )
    return absolute, relative
