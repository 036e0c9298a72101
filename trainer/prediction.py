"""Predict the labels of images with an exported model: pictures and a JSON file per image."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from data_pipelines.transforms import Geometry
from dmtg.files import atomic_path, atomic_write, check_outputs
from dmtg.pictures import check_photo, read_photo
from model.bundle import PrunedModel, load_pruned
from model.kinds.kind import get_kind
from model.tasks.display import Picture
from model.tasks.spec import TaskSpec
from trainer.errors import UserError
from trainer.figures import figure_file
from trainer.json_file import to_json

_COLUMNS = 4
_SHOWN_PIXELS = 600  # of the longer side of the image in the overview


def predict_images(
    model_path: Path, images: list[Path], out: Path, *, overwrite: bool = False
) -> list[dict[str, Any]]:
    """Predict the labels of images and write them to files.

    For `room.png`, write `room.TASK.png` for every dense task, `room.json` with the scalar tasks,
    and `room.overview.png` with all predictions. The names of the outputs and the headers of all
    images are checked before the first file is written; one image at a time is decoded.

    Args:
        model_path: File of the exported model.
        images: Image files with different names.
        out: Folder of the files to write.
        overwrite: Whether files that exist may be replaced; an image never is.

    Returns:
        The content of the JSON file of each image.

    Raises:
        DataError: An image cannot be read.
        UserError: Two images have the same name, or an output would replace a file or another
            output.
        BundleError: The model cannot be read.
    """
    stems = [image.stem for image in images]
    duplicates = {stem for stem in stems if stems.count(stem) > 1}
    if duplicates:
        raise UserError(
            f"images: several are called {min(duplicates)!r}; give them different names"
        )
    for path in images:
        check_photo(path)
    model = load_pruned(model_path)
    try:
        outputs = _outputs(model.tasks, images, out)
        check_outputs(outputs, [model_path, *images], overwrite=overwrite)
    except ValueError as error:
        raise UserError(str(error)) from None
    out.mkdir(parents=True, exist_ok=True)
    return [_predict(model, path, out) for path in images]


def _outputs(
    tasks: Sequence[TaskSpec], images: Sequence[Path], out: Path
) -> Iterator[tuple[Path, str]]:
    """Yield the files that the predictions are written to, and what each of them is."""
    for image in images:
        for task in tasks:
            if task.dense:
                yield _picture_file(out, image, task.name), f"task {task.name!r} of {image.name}"
        yield _attributes_file(out, image), f"the attributes of {image.name}"
        yield _overview_file(out, image), f"the overview of {image.name}"


def _picture_file(out: Path, image: Path, task: str) -> Path:
    return out / f"{image.stem}.{task}.png"


def _attributes_file(out: Path, image: Path) -> Path:
    return out / f"{image.stem}.json"


def _overview_file(out: Path, image: Path) -> Path:
    return out / f"{image.stem}.overview.png"


def _predict(model: PrunedModel, path: Path, out: Path) -> dict[str, Any]:
    picture = read_photo(str(path), path)
    geometry = Geometry(model.image_size)
    params = geometry.draw(np.random.default_rng(0), *picture.shape[:2])
    resized = geometry.apply(np.moveaxis(picture, -1, 0), params, "bilinear")
    predictions = {
        name: value[0] for name, value in model(torch.from_numpy(resized.copy())[None]).items()
    }
    attributes = {
        spec.name: get_kind(spec.kind).record(spec, predictions[spec.name])
        for spec in model.tasks
        if not spec.dense
    }
    dense = {spec: predictions[spec.name].numpy() for spec in model.tasks if spec.dense}
    for spec, values in dense.items():
        drawn = Image.fromarray(get_kind(spec.kind).draw(spec, values))
        drawn = drawn.resize((picture.shape[1], picture.shape[0]), Image.Resampling.NEAREST)
        with atomic_path(_picture_file(out, path, spec.name), sync=False) as partial:
            drawn.save(partial)
    record = {"image": str(path), "attributes": attributes}
    with atomic_write(_attributes_file(out, path), sync=False) as file:
        file.write(to_json(record, indent=1) + "\n")
    _overview(picture, dense, attributes, _overview_file(out, path))
    return record


def _overview(
    picture: Picture,
    dense: dict[TaskSpec, np.ndarray],
    attributes: dict[str, dict[str, Any]],
    path: Path,
) -> None:
    cells = len(dense) + 1 + bool(attributes)
    rows = -(-cells // _COLUMNS)
    with figure_file(path, rows, _COLUMNS, size=(3 * _COLUMNS, 3 * rows), dpi=100) as axes:
        remaining = iter(axes.flat)
        axis = next(remaining)
        axis.imshow(_reduced(picture))
        axis.set_title("image", fontsize=9)
        for spec, values in dense.items():
            axis = next(remaining)
            axis.imshow(get_kind(spec.kind).draw(spec, values))
            axis.set_title(_title(spec, values), fontsize=9)
        if attributes:
            lines = [f"{name}: {_short(entry['value'])}" for name, entry in attributes.items()]
            next(remaining).text(0, 1, "\n".join(lines), va="top", fontsize=8, family="monospace")
        for axis in axes.flat:
            axis.axis("off")


def _reduced(picture: Picture) -> Picture:
    """Return a picture of a size that matplotlib resizes in little memory."""
    factor = max(picture.shape) // _SHOWN_PIXELS
    return np.asarray(Image.fromarray(picture).reduce(factor)) if factor > 1 else picture


def _title(spec: TaskSpec, values: np.ndarray) -> str:
    return f"{spec.name}\n{get_kind(spec.kind).caption(spec, values)}".rstrip()


def _short(value: object) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)
