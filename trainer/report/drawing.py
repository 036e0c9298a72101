"""Pictures of labels and predictions in natural units.

Legend: C channels, H, W.
"""

from __future__ import annotations

import numpy as np
from matplotlib import colormaps
from numpy.typing import NDArray

from model.tasks.spec import TaskSpec

Picture = NDArray[np.uint8]  # [H,W,3]

_COLOUR_MAPS = {"depth": "viridis_r", "grey": "gray", "signed": "coolwarm"}


def value_range(spec: TaskSpec, values: NDArray[np.floating]) -> tuple[float, float]:
    """The natural values that the ends of a task's colour map stand for."""
    finite = values[np.isfinite(values)]
    low, high = np.percentile(finite, (1, 99)) if finite.size else (0.0, 1.0)
    if spec.display == "signed":
        high = max(abs(low), abs(high))
        low = -high
    return float(low), float(max(high, low + 1e-6))


def draw(spec: TaskSpec, values: NDArray[np.generic]) -> Picture:
    """Draw a dense label or prediction of one image.

    Args:
        spec: Its task.
        values: Natural values [C,H,W], or class ids [H,W] of a dense_classification.
    """
    if spec.kind == "dense_classification":
        colours = colormaps["tab20"](np.arange(spec.channels) % 20)[:, :3]
        return np.asarray(255 * colours[values.astype(int)], np.uint8)
    if spec.display == "normal":
        unit = values / np.maximum(np.linalg.norm(values, axis=0, keepdims=True), 1e-6)
        return np.asarray(np.moveaxis(127.5 * (unit + 1), 0, -1), np.uint8)
    first = np.asarray(values[0], np.float64)
    low, high = value_range(spec, first)
    shade = np.clip((first - low) / (high - low), 0, 1)
    name = _COLOUR_MAPS.get(spec.display, "gray")
    return np.asarray(255 * colormaps[name](shade)[..., :3], np.uint8)
