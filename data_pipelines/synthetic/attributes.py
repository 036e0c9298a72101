"""Attribute labels of a ray-cast scene, computed from what is visible in the picture.

R rays, S solids.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import NDArray

from data_pipelines.shards.manifest import Field
from data_pipelines.synthetic.raycast import FACE_CEILING, FACE_FLOOR, FIRST_SOLID, Hits
from data_pipelines.synthetic.scene import (
    FLOOR_PATTERNS,
    MAX_SOLIDS,
    SHAPES,
    SOLID_COLOURS,
    WALL_COLOURS,
    Scene,
)

ATTRIBUTES_MEMBER = "attributes.json"
# Attributes that become wrong when the picture is mirrored.
_SIDED = ("light_from_left", "nearest_solid_left")
_BINARIES = (
    *(f"has_{shape}" for shape in SHAPES),
    "has_window", "has_floating_solid", "has_three_solids", "light_from_left", "warm_light",
    "dark_floor", "nearest_solid_left",
)  # fmt: skip
_CLASSES = {
    "num_solids": tuple(str(count) for count in range(1, MAX_SOLIDS + 1)),
    "largest_shape": SHAPES,
    "largest_colour": tuple(SOLID_COLOURS),
    "wall_colour": tuple(WALL_COLOURS),
    "floor_pattern": FLOOR_PATTERNS,
}
_REGRESSIONS = (
    "camera_pitch", "light_intensity", "mean_depth", "floor_share", "ceiling_share", "solid_share",
)  # fmt: skip
_MIN_SOLID_FRACTION = 0.01
_MIN_WINDOW_FRACTION = 0.012
_MIN_FLOOR_FRACTION = 0.06


def shows_its_labels(scene: Scene, hits: Hits) -> bool:
    """Return whether every solid, the floor and the window, if any, cover enough pixels."""
    num_pixels = hits.surface.size
    solids = _solid_pixels(scene, hits)
    window = hits.window.sum()
    return bool(
        solids.min() >= _MIN_SOLID_FRACTION * num_pixels
        and (hits.surface == FACE_FLOOR).sum() >= _MIN_FLOOR_FRACTION * num_pixels
        and (scene.room.window is None or window >= _MIN_WINDOW_FRACTION * num_pixels)
    )


def attributes(scene: Scene, hits: Hits) -> dict[str, int | float]:
    """Return values by name: 0 or 1, a class id, or a number (degrees, metres, fractions)."""
    return {
        **_binaries(scene, hits),
        **_multiclass(scene, hits),
        **_measures(scene, hits),
    }


def attribute_fields() -> dict[str, Field]:
    """Return the manifest's fields of the attributes, without statistics of regressions."""
    fields = {name: _field(name, "binary") for name in _BINARIES}
    fields |= {name: _field(name, "multiclass", names) for name, names in _CLASSES.items()}
    return fields | {name: _field(name, "regression") for name in _REGRESSIONS}


def _field(
    name: str,
    kind: Literal["binary", "multiclass", "regression"],
    classes: tuple[str, ...] = (),
) -> Field:
    return Field(
        member=ATTRIBUTES_MEMBER,
        key=name,
        kind=kind,
        classes=classes,
        on_flip="forbid" if name in _SIDED else "keep",
    )


def _solid_pixels(scene: Scene, hits: Hits) -> NDArray[np.int64]:
    """Return the number of visible pixels of each solid, [S]."""
    return np.bincount(hits.surface, minlength=FIRST_SOLID + len(scene.solids))[FIRST_SOLID:]


def _binaries(scene: Scene, hits: Hits) -> dict[str, int]:
    solids = scene.solids
    nearest = np.argmin([_nearest_depth(hits, index) for index in range(len(solids))])
    right = scene.camera.axes()[0]
    lamp_right = right @ (scene.lamp.position - scene.camera.position)
    values = {f"has_{shape}": any(s.shape == shape for s in solids) for shape in SHAPES}
    values |= {
        "has_window": scene.room.window is not None,
        "has_floating_solid": any(s.floating for s in solids),
        "has_three_solids": len(solids) >= 3,
        "light_from_left": lamp_right < 0,
        "warm_light": scene.lamp.warm,
        "dark_floor": scene.room.dark_floor,
        "nearest_solid_left": _mean_column(hits, int(nearest)) < 0,
    }
    return {name: int(value) for name, value in values.items()}


def _nearest_depth(hits: Hits, index: int) -> float:
    return float(hits.depth[hits.surface == FIRST_SOLID + index].min())


def _mean_column(hits: Hits, index: int) -> float:
    """Return the mean column of a solid's pixels in half picture widths, 0 in the middle."""
    size = int(np.sqrt(hits.surface.size))
    columns = np.flatnonzero(hits.surface == FIRST_SOLID + index) % size
    return float((columns.mean() + 0.5) / size * 2 - 1)


def _multiclass(scene: Scene, hits: Hits) -> dict[str, int]:
    largest = scene.solids[int(_solid_pixels(scene, hits).argmax())]
    chosen = {
        "num_solids": str(len(scene.solids)),
        "largest_shape": largest.shape,
        "largest_colour": largest.colour,
        "wall_colour": scene.room.wall_colour,
        "floor_pattern": scene.room.floor_pattern,
    }
    return {name: _CLASSES[name].index(value) for name, value in chosen.items()}


def _measures(scene: Scene, hits: Hits) -> dict[str, float]:
    values = {
        "camera_pitch": np.degrees(scene.camera.pitch),
        "light_intensity": scene.lamp.intensity,
        "mean_depth": hits.depth[~hits.window].mean(),
        "floor_share": (hits.surface == FACE_FLOOR).mean(),
        "ceiling_share": (hits.surface == FACE_CEILING).mean(),
        "solid_share": (hits.surface >= FIRST_SOLID).mean(),
    }
    return {name: round(float(value), 6) for name, value in values.items()}
