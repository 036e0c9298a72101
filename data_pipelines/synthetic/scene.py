"""Random indoor scenes: a room, its colours, the solids in it, one lamp and a camera.

World frame: x right, y up, z away from the wall behind the camera; metres and radians.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

SHAPES = ("sphere", "box", "cylinder", "cone")
SOLID_COLOURS = {
    "red": (0.80, 0.06, 0.05),
    "yellow": (0.85, 0.68, 0.03),
    "green": (0.06, 0.52, 0.08),
    "cyan": (0.05, 0.60, 0.66),
    "blue": (0.05, 0.10, 0.72),
    "magenta": (0.70, 0.06, 0.55),
}
WALL_COLOURS = {
    "white": (0.78, 0.77, 0.74),
    "ochre": (0.66, 0.46, 0.20),
    "sage": (0.34, 0.52, 0.30),
    "sky": (0.30, 0.47, 0.68),
    "rose": (0.68, 0.36, 0.36),
}
FLOOR_PATTERNS = ("plain", "checker", "planks")
MAX_SOLIDS = 4
_PLACEMENT_TRIES = 30


@dataclass(frozen=True)
class Solid:
    """One convex solid; a box has a square footprint whose half edge is `radius`."""

    shape: str
    centre: Array  # [3]
    radius: float
    half_height: float
    yaw: float
    colour: str
    floating: bool


@dataclass(frozen=True)
class Camera:
    """A pinhole camera with square pixels, no roll; `pitch` is positive when it looks up."""

    position: Array  # [3]
    yaw: float
    pitch: float
    field_of_view: float

    def axes(self) -> Array:
        """Return rows right, down and forward in world coordinates, [3, 3]."""
        sin_yaw, cos_yaw = np.sin(self.yaw), np.cos(self.yaw)
        sin_pitch, cos_pitch = np.sin(self.pitch), np.cos(self.pitch)
        right = (cos_yaw, 0.0, -sin_yaw)
        down = (sin_pitch * sin_yaw, -cos_pitch, sin_pitch * cos_yaw)
        forward = (cos_pitch * sin_yaw, sin_pitch, cos_pitch * cos_yaw)
        return np.array([right, down, forward])


@dataclass(frozen=True)
class Room:
    """A box with the camera inside; `window` is (x0, x1, y0, y1) on the far wall, or None."""

    low: Array  # [3]
    high: Array  # [3]
    wall_colour: str
    wall_stripes: float
    floor_pattern: str
    dark_floor: bool
    window: tuple[float, float, float, float] | None


@dataclass(frozen=True)
class Lamp:
    """A point light; `warm` tints it orange, otherwise blue."""

    position: Array  # [3]
    intensity: float
    warm: bool


@dataclass(frozen=True)
class Scene:
    """Room, solids, camera and lamp of a picture."""

    room: Room
    solids: tuple[Solid, ...]
    camera: Camera
    lamp: Lamp


@dataclass(frozen=True)
class SceneLayout:
    """Choices made once per sample, so that redrawing a scene does not bias its labels."""

    shapes: tuple[str, ...]
    window: bool
    lamp_side: int  # -1 left of the camera, +1 right


def draw_layout(rng: np.random.Generator) -> SceneLayout:
    """Draw number and shapes of the solids, whether there is a window, and the lamp's side."""
    count = int(rng.integers(1, MAX_SOLIDS + 1))
    shapes = tuple(SHAPES[i] for i in rng.integers(0, len(SHAPES), count))
    return SceneLayout(shapes, bool(rng.random() < 0.5), int(rng.choice((-1, 1))))


def draw_scene(rng: np.random.Generator, layout: SceneLayout) -> Scene | None:
    """Draw a scene for `layout` once; None if a solid did not fit."""
    room = _draw_room(rng, layout)
    camera = _draw_camera(rng, room)
    solids = _place_solids(rng, layout, room, camera)
    if solids is None:
        return None
    return Scene(room, solids, camera, _draw_lamp(rng, layout, room, camera))


def _draw_room(rng: np.random.Generator, layout: SceneLayout) -> Room:
    width, height, depth = rng.uniform(3.8, 7.0), rng.uniform(2.4, 3.4), rng.uniform(3.4, 9.0)
    window = None
    if layout.window:
        half = rng.uniform(0.45, 0.9)
        middle = rng.uniform(-width / 2 + half + 0.2, width / 2 - half - 0.2)
        bottom = rng.uniform(0.8, 1.2)
        window = (middle - half, middle + half, bottom, bottom + rng.uniform(0.8, 1.1))
    return Room(
        low=np.array([-width / 2, 0.0, 0.0]),
        high=np.array([width / 2, height, depth]),
        wall_colour=str(rng.choice(list(WALL_COLOURS))),
        wall_stripes=float(rng.uniform(0.0, 0.12)),
        floor_pattern=str(rng.choice(FLOOR_PATTERNS)),
        dark_floor=bool(rng.random() < 0.5),
        window=window,
    )


def _draw_camera(rng: np.random.Generator, room: Room) -> Camera:
    x = rng.uniform(-0.25, 0.25) * (room.high[0] - room.low[0])
    height = rng.uniform(0.8, min(2.2, room.high[1] - 0.3))
    # Turned towards the middle on average, so that a side wall rarely fills the picture.
    yaw = rng.uniform(-0.35, 0.35) - 0.15 * x
    return Camera(
        position=np.array([x, height, rng.uniform(0.3, 0.9)]),
        yaw=float(yaw),
        pitch=float(np.radians(rng.uniform(-24.0, 6.0))),
        field_of_view=float(np.radians(rng.uniform(62.0, 80.0))),
    )


def _place_solids(
    rng: np.random.Generator, layout: SceneLayout, room: Room, camera: Camera
) -> tuple[Solid, ...] | None:
    solids: list[Solid] = []
    for shape in layout.shapes:
        for _ in range(_PLACEMENT_TRIES):
            solid = _draw_solid(rng, shape, room, camera)
            if _is_free(solid, solids, room):
                solids.append(solid)
                break
        else:
            return None
    return tuple(solids)


def _draw_solid(rng: np.random.Generator, shape: str, room: Room, camera: Camera) -> Solid:
    radius = rng.uniform(0.34, 0.62)
    half_height = radius if shape == "sphere" else rng.uniform(0.38, 0.72)
    if shape == "box":
        radius *= 0.85
    elif shape == "cone":  # the tip covers few pixels
        half_height *= 1.25
    floating = bool(rng.random() < 0.27)
    clearance = rng.uniform(0.35, 0.8) if floating else 0.0
    azimuth = camera.yaw + rng.uniform(-0.42, 0.42) * camera.field_of_view
    distance = rng.uniform(1.7, min(4.6, room.high[2] - camera.position[2]))
    centre = np.array(
        [
            camera.position[0] + distance * np.sin(azimuth),
            half_height + clearance,
            camera.position[2] + distance * np.cos(azimuth),
        ]
    )
    colour = str(rng.choice(list(SOLID_COLOURS)))
    return Solid(
        shape, centre, float(radius), float(half_height), float(rng.uniform(0, np.pi)), colour,
        floating,
    )  # fmt: skip


def footprint(solid: Solid) -> float:
    """Return the radius in metres of the upright cylinder around `solid`."""
    return solid.radius * (np.sqrt(2.0) if solid.shape == "box" else 1.0)


def _is_free(solid: Solid, others: list[Solid], room: Room) -> bool:
    reach = footprint(solid) + 0.05
    x, y, z = solid.centre
    inside = room.low[0] + reach < x < room.high[0] - reach and z < room.high[2] - reach
    fits = y + solid.half_height < room.high[1] - 0.3
    apart = all(
        np.hypot(x - other.centre[0], z - other.centre[2]) > reach + footprint(other)
        for other in others
    )
    return bool(inside and fits and apart)


def _draw_lamp(rng: np.random.Generator, layout: SceneLayout, room: Room, camera: Camera) -> Lamp:
    right, _, forward = camera.axes()
    ahead = np.array([forward[0], 0.0, forward[2]])
    position = camera.position + layout.lamp_side * rng.uniform(1.0, 2.2) * right
    position += rng.uniform(0.8, 2.4) * ahead
    position = np.clip(position, room.low + 0.35, room.high - 0.35)
    position[1] = room.high[1] - rng.uniform(0.15, 0.5)
    return Lamp(position, float(rng.uniform(0.45, 1.25)), bool(rng.random() < 0.5))
