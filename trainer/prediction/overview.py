"""Draw a photo with all its predictions, beside its labels where it has some."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes

from dmtg.names import one_line
from model.kinds.kind import get_kind
from model.tasks.display import Picture
from model.tasks.spec import TaskSpec
from trainer.figures import figure_file

_COLUMNS = 4  # an even number
_TEXT_LINES = 18  # in a cell

_Cell = tuple[Picture, str] | str  # a picture with its title, or text


def draw_overview(
    path: Path,
    photo: Picture,
    dense: Mapping[TaskSpec, np.ndarray],
    attributes: Mapping[str, Mapping[str, Any]],
    labels: Mapping[str, Any],
    drawn: Mapping[str, tuple[Picture, str]],
) -> None:
    """Write a picture of the photo and the predictions, each with its label on the right.

    Args:
        path: PNG file.
        photo: The photo, perhaps reduced.
        dense: Natural predictions of the dense tasks.
        attributes: Records of the scalar tasks, by name.
        labels: Labels of scalar tasks, by name; may be empty.
        drawn: Pictures and captions of labels of dense tasks, by name; may be empty.
    """
    lines = [
        f"{name}: {_short(entry['value'])}"
        + (f"  (label {_short(labels[name])})" if name in labels else "")
        for name, entry in attributes.items()
    ]
    texts = [
        "\n".join(lines[start : start + _TEXT_LINES]) for start in range(0, len(lines), _TEXT_LINES)
    ]
    cells: list[_Cell] = [(photo, "image")]
    if drawn:  # pairs, which no row separates
        cells.append(texts.pop(0) if texts else "")
    for spec, values in dense.items():
        kind = get_kind(spec.kind)
        cells.append((kind.draw(spec, values), f"{spec.name}\n{kind.caption(spec, values)}"))
        if drawn:
            picture, caption = drawn.get(spec.name, (None, ""))
            cells.append("" if picture is None else (picture, f"{spec.name}: label\n{caption}"))
    cells += texts
    rows = -(-len(cells) // _COLUMNS)
    with figure_file(path, rows, _COLUMNS, size=(3 * _COLUMNS, 3 * rows), dpi=100) as axes:
        for axis, cell in zip(axes.flat, cells, strict=False):
            _show(axis, cell)
        for axis in axes.flat:
            axis.axis("off")


def _show(axis: Axes, cell: _Cell) -> None:
    if isinstance(cell, str):
        axis.text(0, 1, cell, va="top", fontsize=7, family="monospace")
        return
    picture, title = cell
    axis.imshow(picture)
    axis.set_title(title.rstrip(), fontsize=9)


def _short(value: object) -> str:
    return f"{value:.3g}" if isinstance(value, float) else one_line(str(value), 40)
