"""Draw samples and their labels: one row per sample, one column per dense task.

Legend: C channels, H, W.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from data_pipelines.reading.collate import Batch
from dmtg.files import atomic_path
from dmtg.names import one_line
from model.kinds.kind import get_kind
from model.tasks.display import Picture
from model.tasks.spec import TaskSpec
from trainer.doctor.rules import rule_of

_CELL = 160  # pixels of a side
_MARGIN, _HEADER, _LINE = 6, 22, 13
_TEXT_WIDTH = 210
_LINES = _CELL // _LINE  # lines of text in a column
_MAX_COLUMNS = 4  # columns of text
_BLANK = (235, 235, 235)


def draw_sheet(samples: Sequence[Batch], tasks: Sequence[TaskSpec], path: Path) -> None:
    """Write the contact sheet: the image and dense labels in colour, scalar labels as text.

    Invalid pixels are black; a missing label is marked "missing".

    Args:
        samples: One batch of a single sample for each row, in the host's memory.
        tasks: Tasks of the batches.
        path: PNG file.
    """
    dense = [task for task in tasks if task.dense]
    scalars = [task for task in tasks if not task.dense]
    text_columns = min(-(-len(scalars) // _LINES), _MAX_COLUMNS)
    width = _MARGIN + (1 + len(dense)) * (_CELL + _MARGIN) + text_columns * _TEXT_WIDTH
    height = _HEADER + len(samples) * (_CELL + _HEADER)
    sheet = Image.new("RGB", (width, height), "white")
    pen = ImageDraw.Draw(sheet)
    pen.font = ImageFont.load_default(11)
    for column, name in enumerate(["image", *(task.name for task in dense)]):
        pen.text((_MARGIN + column * (_CELL + _MARGIN), 5), name, fill="black")
    for row, sample in enumerate(samples):
        top = _HEADER + row * (_CELL + _HEADER)
        _paste(sheet, np.moveaxis(sample.images[0].numpy(), 0, -1), 0, top)
        _caption(pen, _MARGIN, top, one_line(sample.keys[0]))
        for column, task in enumerate(dense, start=1):
            _draw_label(sheet, pen, sample, task, (column, top))
        left = _MARGIN + (1 + len(dense)) * (_CELL + _MARGIN)
        for number, line in enumerate(_lines(sample, scalars)[: _LINES * _MAX_COLUMNS]):
            position = (left + number // _LINES * _TEXT_WIDTH, top + number % _LINES * _LINE)
            pen.text(position, line[:34], fill="black")
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_path(path, sync=False) as partial:
        sheet.save(partial)


def _draw_label(
    sheet: Image.Image,
    pen: ImageDraw.ImageDraw,
    sample: Batch,
    task: TaskSpec,
    position: tuple[int, int],
) -> None:
    column, top = position
    left = _MARGIN + column * (_CELL + _MARGIN)
    if not sample.valid[task.name][0]:
        pen.rectangle((left, top, left + _CELL - 1, top + _CELL - 1), fill=_BLANK)
        pen.text((left + _CELL // 2, top + _CELL // 2), "missing", fill="grey", anchor="mm")
        return
    label = sample.labels[task.name][0].numpy()  # [C,H,W]
    picture, caption = label_picture(task, label)
    _paste(sheet, picture, column, top)
    _caption(pen, left, top, caption)


def _caption(pen: ImageDraw.ImageDraw, left: int, top: int, text: str) -> None:
    """Write a text below a cell, cut to the cell's width."""
    length = next(n for n in range(len(text), -1, -1) if pen.textlength(text[:n]) <= _CELL)
    pen.text((left, top + _CELL + 3), text[:length], fill="black")


def label_picture(task: TaskSpec, label: np.ndarray) -> tuple[Picture, str]:
    """Return a stored label [C,H,W] in colour, invalid pixels black, and its caption."""
    mask = rule_of(task).valid_pixels(label)
    if not mask.any():
        return np.zeros((*mask.shape, 3), np.uint8), "all invalid"
    picture, caption = get_kind(task.kind).draw_label(task, label, mask)
    return np.where(mask[..., None], picture, np.uint8(0)), caption


def _paste(sheet: Image.Image, picture: Picture, column: int, top: int) -> None:
    cell = Image.fromarray(np.ascontiguousarray(picture)).resize((_CELL, _CELL))
    sheet.paste(cell, (_MARGIN + column * (_CELL + _MARGIN), top))


def _lines(sample: Batch, scalars: Sequence[TaskSpec]) -> list[str]:
    lines = []
    for task in scalars:
        if not sample.valid[task.name][0]:
            lines.append(f"{task.name}: missing")
            continue
        text = get_kind(task.kind).label_text(task, float(sample.labels[task.name][0]))
        lines.append(f"{task.name}: {text}")
    return lines
