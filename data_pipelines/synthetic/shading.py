"""Colours of a ray-cast scene: painted surfaces under one lamp, as an 8-bit picture.

R rays, H, W picture sides.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from data_pipelines.synthetic.raycast import (
    FACE_BACK,
    FACE_CEILING,
    FACE_FAR,
    FACE_FLOOR,
    FACE_LEFT,
    FACE_RIGHT,
    FIRST_SOLID,
    Hits,
    in_shadow,
    to_local,
)
from data_pipelines.synthetic.scene import (
    SOLID_COLOURS,
    WALL_COLOURS,
    Array,
    Room,
    Scene,
    Solid,
)

_AMBIENT = 0.32
_LAMP_REACH = 2.6  # metres at which the lamp's light has halved
_WARM, _COLD = np.array([1.12, 0.98, 0.74]), np.array([0.80, 0.98, 1.18])
_TILE = 0.6  # metres
_SKIRTING = 0.12  # metres
_FRAME = 0.07  # metres
_EDGE = 0.07  # metres
_SHININESS = 25.0
_PALE = 0.85
_NOISE = 2.5  # grey levels
_GAMMA = 1 / 2.2
_DARK_FLOOR, _LIGHT_FLOOR = np.array([0.13, 0.09, 0.07]), np.array([0.60, 0.52, 0.42])
_CEILING = np.array([0.82, 0.82, 0.80])
# Indirect light differs between faces; it keeps corners visible.
_FACE_TONE = {FACE_LEFT: 0.88, FACE_RIGHT: 0.95, FACE_BACK: 0.9, FACE_FAR: 1.0}


def render(scene: Scene, hits: Hits, size: int, rng: np.random.Generator) -> NDArray[np.uint8]:
    """Return the picture of `hits`, [H, W, 3], with sensor noise from `rng`."""
    albedo = _paint(scene, hits)
    offset = scene.lamp.position[:, None] - hits.points
    distance = np.sqrt((offset * offset).sum(axis=0))
    to_lamp = offset / distance
    lambert = np.maximum((to_lamp * hits.normals).sum(axis=0), 0.0)
    lambert *= 2.0 / (1.0 + (distance / _LAMP_REACH) ** 2)
    lit = ~in_shadow(scene, hits.points, hits.normals)
    tint = (_WARM if scene.lamp.warm else _COLD)[:, None]
    light = scene.lamp.intensity * tint * (_AMBIENT + lambert * lit)
    colour = albedo * light + _gloss(scene, hits, to_lamp) * lit
    colour[:, hits.window] = _sky(hits)[:, hits.window]
    levels = 255.0 * np.clip(colour, 0.0, 1.0) ** _GAMMA
    levels += rng.normal(0.0, _NOISE, levels.shape)
    picture = np.clip(np.rint(levels), 0, 255).astype(np.uint8)
    return np.ascontiguousarray(picture.T).reshape(size, size, 3)


def _paint(scene: Scene, hits: Hits) -> Array:
    """Return the albedo of the surface on each ray, [3, R]."""
    room = scene.room
    albedo = np.empty_like(hits.points)
    for face, tone in _FACE_TONE.items():
        on_face = hits.surface == face
        albedo[:, on_face] = tone * _wall(room, face, hits.points[:, on_face])
    on_floor = hits.surface == FACE_FLOOR
    albedo[:, on_floor] = _floor(room, hits.points[:, on_floor])
    albedo[:, hits.surface == FACE_CEILING] = _CEILING[:, None]
    for index, solid in enumerate(scene.solids):
        on_solid = hits.surface == FIRST_SOLID + index
        albedo[:, on_solid] = _solid(solid, hits.points[:, on_solid])
    return albedo


def _wall(room: Room, face: int, points: Array) -> Array:
    x, y, z = points
    along = z if face in (FACE_LEFT, FACE_RIGHT) else x
    stripes = 1.0 - room.wall_stripes * (np.mod(along, 0.5) < 0.25)
    paint = np.array(WALL_COLOURS[room.wall_colour])[:, None] * stripes
    paint[:, y < _SKIRTING] = 0.10
    if face == FACE_FAR and room.window is not None:
        left, right, bottom, top = room.window
        framed = (
            (x > left - _FRAME) & (x < right + _FRAME) & (y > bottom - _FRAME) & (y < top + _FRAME)
        )
        paint[:, framed] = 0.85
    return paint


def _floor(room: Room, points: Array) -> Array:
    x, _, z = points
    if room.floor_pattern == "checker":
        shade = np.mod(np.floor(x / _TILE) + np.floor(z / _TILE), 2)
    elif room.floor_pattern == "planks":
        shade = (np.mod(x, _TILE) < _TILE / 3).astype(np.float64)
    else:
        shade = np.zeros_like(x)
    base = _DARK_FLOOR if room.dark_floor else _LIGHT_FLOOR
    contrast = 2.2 if room.dark_floor else -0.65
    return base[:, None] * (1.0 + contrast * shade)


def _solid(solid: Solid, points: Array) -> Array:
    """Return colours: boxes have dark edges; cylinders, cones and spheres have pale parts."""
    paint = np.repeat(np.array(SOLID_COLOURS[solid.colour])[:, None], points.shape[1], axis=1)
    local = to_local(solid, points)
    if solid.shape == "box":
        half = np.array([solid.radius, solid.half_height, solid.radius])[:, None]
        paint[:, (half - np.abs(local) < _EDGE).sum(axis=0) >= 2] *= 0.15
    elif solid.shape == "cylinder":
        paint[:, np.abs(local[1]) < solid.half_height / 3] = _PALE
    elif solid.shape == "cone":
        paint[:, local[1] > solid.half_height / 4] = _PALE
    else:
        paint[:, local.prod(axis=0) > 0] = _PALE
    return paint


def _gloss(scene: Scene, hits: Hits, to_lamp: Array) -> Array:
    """Return the specular highlight of the lamp on spheres (Blinn's half vector), [R]."""
    shiny = np.zeros(hits.surface.shape)
    for index, solid in enumerate(scene.solids):
        if solid.shape == "sphere":
            on = hits.surface == FIRST_SOLID + index
            to_eye = -hits.rays[:, on] / np.linalg.norm(hits.rays[:, on], axis=0)
            half = to_eye + to_lamp[:, on]
            half /= np.linalg.norm(half, axis=0)
            shiny[on] = np.maximum((half * hits.normals[:, on]).sum(axis=0), 0.0) ** _SHININESS
    return shiny


def _sky(hits: Hits) -> Array:
    """Return the colour of the sky in the window, paler towards the horizon, [3, R]."""
    rise = np.clip(hits.rays[1] + 0.3, 0.0, 1.0)
    return np.stack([0.80 - 0.45 * rise, 0.90 - 0.28 * rise, np.ones_like(rise)])
