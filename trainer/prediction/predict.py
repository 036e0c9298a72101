"""Predict the labels of photos with an exported model, in batches, and write them to files."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Literal, get_args

import torch
from tqdm import tqdm

from data_pipelines.parallel import mapped
from dmtg.errors import DataError
from dmtg.files import check_outputs
from model.bundle import load_pruned
from model.preprocessing import to_images
from model.pruned_model import PrunedModel
from trainer.errors import UserError
from trainer.prediction.files import find_photos
from trainer.prediction.outputs import Outputs
from trainer.prediction.photos import PhotoFiles, Photos, Prepare, Prepared, ShardPhotos

OnError = Literal["stop", "skip"]
logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Options:
    """How photos are predicted.

    Attributes:
        tasks: Names of the tasks to predict; None means all. Only what these need is loaded.
        formats: See `Outputs`.
        overview: See `Outputs`.
        batch_size: Photos that are computed together.
        workers: Processes that read photos; 1 reads in this process.
        device: Such as `cpu` or `cuda:0`; None means a GPU where there is one.
        on_error: Whether a photo that cannot be read ends the command, or is left out.
        overwrite: Whether files that exist may be replaced; an input never is.
        progress: Whether to show a progress bar on a terminal.
    """

    tasks: Sequence[str] | None = None
    formats: Sequence[str] = ("png",)
    overview: bool = True
    batch_size: int = 16
    workers: int = 1
    device: str | None = None
    on_error: OnError = "stop"
    overwrite: bool = False
    progress: bool = False


def on_error_of(name: str) -> OnError:
    """Return the name of what to do with a photo that cannot be read.

    Raises:
        UserError: It is none.
    """
    for allowed in get_args(OnError):
        if name == allowed:
            return allowed
    raise UserError(f"--on-error: found {name!r}; allowed: {', '.join(get_args(OnError))}")


def predict_files(
    model_path: Path,
    inputs: Iterable[str | Path],
    out: Path,
    options: Options | None = None,
    *,
    lists: Iterable[str] = (),
) -> Iterator[dict[str, Any]]:
    """Predict photos in files; see `find_photos` for the inputs and `Outputs` for the files.

    The names of the outputs and the headers of all photos are checked before the first file is
    written.

    Yields:
        The record of each photo; with the key `error` for one that was left out.

    Raises:
        DataError: A photo cannot be read.
        UserError: An input or an option cannot be used, or an output would replace a file.
        BundleError: The model cannot be read, or has no such task.
    """
    photos = PhotoFiles(find_photos([str(path) for path in inputs], lists, out))
    return _predict(model_path, photos, out, options or Options())


def predict_shards(
    model_path: Path,
    shards: str,
    out: Path,
    options: Options | None = None,
    *,
    split: str = "val",
    limit: int | None = None,
) -> Iterator[dict[str, Any]]:
    """Predict photos in shards, and show their labels beside the predictions.

    Args:
        model_path: File of the exported model.
        shards: Folder or URL.
        out: Folder of the files to write.
        options: See `Options`.
        split: Name of the split.
        limit: Number of samples; None for all.

    Yields, Raises: See `predict_files`.
    """
    options = options or Options()
    model = load_pruned(model_path, tasks=options.tasks)
    photos = ShardPhotos(shards, split, model.tasks, model.image_size, limit)
    for task, reason in photos.unlabelled.items():
        logger.warning("no labels are shown of task %s: %s", task, reason)
    return _predict(model_path, photos, out, options, model)


def _predict(
    model_path: Path,
    photos: Photos,
    out: Path,
    options: Options,
    model: PrunedModel | None = None,
) -> Iterator[dict[str, Any]]:
    """Check everything that can be checked, then return the records of the photos."""
    if options.on_error == "stop":
        for number in range(len(photos.names)):
            photos.check(number)
    model = model or load_pruned(model_path, tasks=options.tasks)
    if not model.takes_photos:
        raise UserError(f"{model_path}: the inputs of this model are not photos")
    outputs = Outputs(out, model.tasks, options.formats, options.overview)
    shown = [Path(source).name for source in photos.sources]
    try:
        check_outputs(
            outputs.planned(photos.names, shown),
            [model_path, *filter(Path.exists, photos.inputs)],
            overwrite=options.overwrite,
        )
    except ValueError as error:
        raise UserError(str(error)) from None
    return _records(model.to(_device(options.device)), photos, outputs, options)


def _records(
    model: PrunedModel, photos: Photos, outputs: Outputs, options: Options
) -> Iterator[dict[str, Any]]:
    numbers = range(len(photos.names))
    prepare = Prepare(photos, model.image_size, outputs.draws)
    with (
        outputs.open() as lines,
        mapped(prepare, numbers, options.workers) as prepared,
        tqdm(total=len(numbers), disable=None if options.progress else True, unit="image") as bar,
    ):
        for batch in _batches(prepared, options.batch_size):
            for record in _batch_records(model, photos, batch, outputs, lines):
                yield record
                bar.update()
            # What could be read before it is written first.
            if options.on_error == "stop" and batch[-1].error:
                raise DataError(f"{batch[-1].error}; --on-error skip goes on without it")


def _batches(prepared: Iterator[Prepared], size: int) -> Iterator[list[Prepared]]:
    """Yield photos in batches; one that cannot be read ends its batch."""
    batch: list[Prepared] = []
    for photo in prepared:
        batch.append(photo)
        if photo.error or len(batch) == size:
            yield batch
            batch = []
    if batch:
        yield batch


def _batch_records(
    model: PrunedModel,
    photos: Photos,
    batch: Sequence[Prepared],
    outputs: Outputs,
    lines: IO[str] | None,
) -> Iterator[dict[str, Any]]:
    read = [photo.image for photo in batch if photo.image is not None]
    predictions: dict[str, torch.Tensor] = {}
    if read:
        with torch.no_grad():
            images = to_images(read).to(model.network.device)
            predictions = {name: value.cpu() for name, value in model(images).items()}
    rows = iter(range(len(read)))
    for photo in batch:
        source = photos.sources[photo.number]
        if photo.image is None:
            yield outputs.write_error(source, photo.error, lines)
            continue
        row = next(rows)
        values = {name: value[row] for name, value in predictions.items()}
        yield outputs.write(photos.names[photo.number], source, photo, values, lines)


def _device(name: str | None) -> torch.device:
    """Return the device of a name.

    Raises:
        UserError: There is no such device.
    """
    if name is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = (str(error).splitlines() or [""])[0]
        raise UserError(f"--device: found {name!r}, which cannot be used: {reason}") from None
    return device
