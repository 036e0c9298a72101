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

_COLUMNS = 4
_TEXT_LINES = 28  # in a cell


def draw_overview(
    path: Path,
    photo: Picture,
    dense: Mapping[TaskSpec, np.ndarray],
    attributes: Mapping[str, Mapping[str, Any]],
    labels: Mapping[str, Any],
    drawn: Mapping[str, tuple[Picture, str]],
) -> None:
    """Write a picture of the photo, the predictions, and each label after its prediction.

    Args:
        path: PNG file.
        photo: The photo, perhaps reduced.
        dense: Natural predictions of the dense tasks.
        attributes: Records of the scalar tasks, by name.
        labels: Labels of scalar tasks, by name; may be empty.
        drawn: Pictures and captions of labels of dense tasks, by name; may be empty.
    """
    cells: list[tuple[Picture, str]] = [(photo, "image")]
    for spec, values in dense.items():
        kind = get_kind(spec.kind)
        caption = kind.caption(spec, values)
        cells.append((kind.draw(spec, values), f"{spec.name}\n{caption}".rstrip()))
        if spec.name in drawn:
            picture, caption = drawn[spec.name]
            cells.append((picture, f"{spec.name}: label\n{caption}".rstrip()))
    lines = [
        f"{name}: {_short(entry['value'])}"
        + (f"  (label {_short(labels[name])})" if name in labels else "")
        for name, entry in attributes.items()
    ]
    texts = [lines[start : start + _TEXT_LINES] for start in range(0, len(lines), _TEXT_LINES)]
    rows = -(-(len(cells) + len(texts)) // _COLUMNS)
    with figure_file(path, rows, _COLUMNS, size=(3 * _COLUMNS, 3 * rows), dpi=100) as axes:
        remaining = iter(axes.flat)
        for picture, title in cells:
            _show(next(remaining), picture, title)
        for text in texts:
            next(remaining).text(0, 1, "\n".join(text), va="top", fontsize=7, family="monospace")
        for axis in axes.flat:
            axis.axis("off")


def _show(axis: Axes, picture: Picture, title: str) -> None:
    axis.imshow(picture)
    axis.set_title(title, fontsize=9)


def _short(value: object) -> str:
    return f"{value:.3g}" if isinstance(value, float) else one_line(str(value), 40)
