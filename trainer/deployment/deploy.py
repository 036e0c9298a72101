"""Write the model of a run, or some of its tasks, in a format of other programs."""

from __future__ import annotations

import tempfile
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from dmtg.files import atomic_path
from model.bundle import load_pruned, save_bundle
from model.pruned_model import PrunedModel
from trainer.deployment.card import write_card
from trainer.deployment.deployed import DeployedModel, Preprocessing, check_agreement
from trainer.deployment.graph import write_torch
from trainer.deployment.onnx_file import write_onnx
from trainer.errors import UserError
from trainer.export import comparison_images, export_run

Format = Literal["safetensors", "onnx", "torch"]
SUFFIXES: dict[str, Format] = {".safetensors": "safetensors", ".onnx": "onnx", ".pt2": "torch"}
_BATCH = 4  # images of the comparison
_SEED = 0


@dataclass(frozen=True)
class DeployReport:
    """What was written, and how far any output was from the exported model's.

    `max_rel_diff` is relative to the task's largest output where that is over one; of class ids it
    is the share that differs.
    """

    path: str
    format: str
    tasks: int
    groups: int
    parameters: int
    bytes: int
    max_rel_diff: float


def format_of(out: Path, name: str | None) -> Format:
    """Return the format to write: the one that is named, else that of the file's suffix.

    Raises:
        UserError: The name is unknown, or the file does not end as its format does.
    """
    by_suffix = SUFFIXES.get(out.suffix)
    if name is None:
        return by_suffix or "safetensors"
    for suffix, known in SUFFIXES.items():
        if name == known:
            if by_suffix != known and (by_suffix is not None or known != "safetensors"):
                raise UserError(
                    f"--out: found {out.name!r}; a file of --format {name} ends in {suffix}"
                )
            return known
    raise UserError(f"--format: found {name!r}; allowed: {', '.join(SUFFIXES.values())}")


def deploy(
    source: Path,
    out: Path,
    output_format: Format,
    *,
    preprocessing: Preprocessing = "normalize",
    tasks: Collection[str] | None = None,
    card: bool = False,
    shards: str | None = None,
) -> DeployReport:
    """Write a model after comparing its outputs with those of the exported model.

    Args:
        source: Folder of a run, whose newest checkpoint is used, or an exported model.
        out: The file to write.
        output_format: Its format.
        preprocessing: See `DeployedModel`.
        tasks: Names of the tasks; None means all.
        card: Whether to write a model card beside the file.
        shards: Folder or URL of the images of the comparison; None reads a run's data. For an
            exported model the images are random.

    Raises:
        UserError: The run has no whole checkpoint, or the model cannot be written in the format.
        BundleError: The exported model cannot be read, or has no such task.
        ValueError: The outputs differ; no file is left.
    """
    out.parent.mkdir(parents=True, exist_ok=True)
    with exported_model(source, shards) as file:
        model = load_pruned(file, tasks=tasks)
        images = _images(source, model, shards)
        if output_format == "safetensors":
            difference = _write_smaller(out, model, load_pruned(file), images)
        else:
            deployed = DeployedModel(model, preprocessing).eval()
            write = write_onnx if output_format == "onnx" else write_torch
            difference = write(out, deployed, _examples(deployed, images))
    if card:
        write_card(out, model, source)
    return DeployReport(
        path=str(out),
        format=output_format,
        tasks=len(model.tasks),
        groups=len(model.groups),
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        bytes=out.stat().st_size,
        max_rel_diff=float(f"{difference:.3g}"),
    )


def _write_smaller(path: Path, model: PrunedModel, whole: PrunedModel, images: Tensor) -> float:
    """Write a model of some tasks and return how far its outputs are from those of the whole."""
    with atomic_path(path) as partial:
        save_bundle(partial, model.network, model.metadata)
        found, expected = load_pruned(partial)(images), whole(images)
        return check_agreement("the smaller model", {name: expected[name] for name in found}, found)


@contextmanager
def exported_model(source: Path, shards: str | None = None) -> Iterator[Path]:
    """Give the file of an exported model; that of a run exists only in the block.

    Args:
        source: Folder of a run, or an exported model.
        shards: See `deploy`.
    """
    if not source.is_dir():
        yield source
        return
    with tempfile.TemporaryDirectory(prefix="dmtg-export-") as folder:
        file = Path(folder) / "model.safetensors"
        export_run(source, file, shards)
        yield file


def _images(source: Path, model: PrunedModel, shards: str | None) -> Tensor:
    """Return images of a run, or random ones, as the network takes them [B,C,h,w]."""
    if source.is_dir():
        return comparison_images(source, model.tasks, shards)
    shape = (_BATCH, len(model.network.image_mean), *model.image_size)
    generator = torch.Generator().manual_seed(_SEED)
    if model.takes_photos:
        return torch.randint(0, 256, shape, generator=generator, dtype=torch.uint8)
    return torch.randn(shape, generator=generator)


def _examples(model: DeployedModel, images: Tensor) -> list[Tensor]:
    """Return inputs in two sizes of a batch, and of two sizes of photos where any is allowed."""
    batch = images[:_BATCH]
    if len(batch) < 2:
        batch = batch.repeat(2, 1, 1, 1)
    if model.preprocessing != "resize":
        return [model.inputs(batch), model.inputs(batch[:1])]
    # Of another shape: smaller in one direction, larger in the other.
    photos = batch[:, :, ::2].repeat_interleave(2, dim=3)
    return [model.inputs(photos), model.inputs(batch[:1])]
