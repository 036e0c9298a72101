"""Predict the labels of images with an exported model: pictures and a JSON file per image."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
import torch
from PIL import Image, UnidentifiedImageError

from data_pipelines.transforms import Geometry
from dmtg.files import atomic_path, atomic_write
from model.bundle import PrunedModel, load_pruned
from model.kinds.kind import get_kind
from model.tasks.display import Picture
from model.tasks.spec import TaskSpec
from trainer.errors import UserError
from trainer.json_file import to_json

_COLUMNS = 4


def predict_images(model_path: Path, images: list[Path], out: Path) -> list[dict[str, Any]]:
    """Predict the labels of images and write them to files.

    For `room.png`, write `room.TASK.png` for every dense task, `room.json` with the scalar tasks,
    and `room.overview.png` with all predictions.

    Args:
        model_path: File of the exported model.
        images: Image files with different names.
        out: Folder of the files to write.

    Returns:
        The content of the JSON file of each image.

    Raises:
        UserError: An image cannot be read, or two have the same name.
        BundleError: The model cannot be read.
    """
    stems = [image.stem for image in images]
    duplicates = {stem for stem in stems if stems.count(stem) > 1}
    if duplicates:
        raise UserError(
            f"images: several are called {min(duplicates)!r}; give them different names"
        )
    model = load_pruned(model_path)
    pictures = [_read(path) for path in images]
    out.mkdir(parents=True, exist_ok=True)
    records = []
    for path, picture in zip(images, pictures, strict=True):
        records.append(_predict(model, path, picture, out))
    return records


def _read(path: Path) -> Picture:
    try:
        with Image.open(path) as image:
            return np.asarray(image.convert("RGB"))
    except (OSError, UnidentifiedImageError) as error:
        raise UserError(f"image {path}: cannot be read ({error})") from None


def _predict(model: PrunedModel, path: Path, picture: Picture, out: Path) -> dict[str, Any]:
    geometry = Geometry(model.image_size)
    channels_first = np.ascontiguousarray(np.moveaxis(picture, -1, 0))
    params = geometry.draw(np.random.default_rng(0), *picture.shape[:2])
    resized = geometry.apply(channels_first, params, "bilinear")
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
        with atomic_path(out / f"{path.stem}.{spec.name}.png", sync=False) as partial:
            drawn.save(partial)
    record = {"image": str(path), "attributes": attributes}
    with atomic_write(out / f"{path.stem}.json", sync=False) as file:
        file.write(to_json(record, indent=1) + "\n")
    _overview(picture, dense, attributes, out / f"{path.stem}.overview.png")
    return record


def _overview(
    picture: Picture,
    dense: dict[TaskSpec, np.ndarray],
    attributes: dict[str, dict[str, Any]],
    path: Path,
) -> None:
    cells = len(dense) + 1 + bool(attributes)
    rows = -(-cells // _COLUMNS)
    figure, axes = plt.subplots(rows, _COLUMNS, figsize=(3 * _COLUMNS, 3 * rows), squeeze=False)
    remaining = iter(axes.flat)
    axis = next(remaining)
    axis.imshow(picture)
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
    figure.tight_layout()
    with atomic_path(path, sync=False) as partial:
        figure.savefig(partial, dpi=100)
    plt.close(figure)


def _title(spec: TaskSpec, values: np.ndarray) -> str:
    return f"{spec.name}\n{get_kind(spec.kind).caption(spec, values)}".rstrip()


def _short(value: object) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)
