"""Closed-form ray casting: the first surface on each pixel's ray, and its geometry.

R rays (H * W, row by row), S solids.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from data_pipelines.synthetic.scene import Array, Camera, Room, Scene, Solid

# Identifiers of surfaces: the six faces of the room, then the solids in their order.
FACE_LEFT, FACE_RIGHT, FACE_FLOOR, FACE_CEILING, FACE_BACK, FACE_FAR = range(6)
FIRST_SOLID = 6
_EPS = 1e-9


@dataclass(frozen=True)
class Hits:
    """The first surface along each ray, in world coordinates."""

    rays: Array  # [3, R], scaled so that their component along the optical axis is 1
    depth: Array  # [R], metres along the optical axis
    points: Array  # [3, R]
    normals: Array  # [3, R], unit, towards the camera's side
    curvature: Array  # [2, R], principal curvatures in 1/m, the larger first, convex positive
    surface: NDArray[np.int64]  # [R], a face or FIRST_SOLID + index
    window: NDArray[np.bool_]  # [R]


def camera_rays(camera: Camera, size: int) -> Array:
    """Return rays through the pixel centres of a size x size picture, [3, R] in world frame."""
    half = np.tan(camera.field_of_view / 2)
    centres = ((np.arange(size) + 0.5) / size * 2 - 1) * half
    right, down = np.meshgrid(centres, centres)
    local = np.stack([right.ravel(), down.ravel(), np.ones(size * size)])
    return camera.axes().T @ local


def cast(scene: Scene, size: int) -> Hits:
    """Return the first surface on every pixel's ray."""
    rays = camera_rays(scene.camera, size)
    origin = scene.camera.position[:, None]  # [3, 1]
    depth, surface = _room_distance(scene.room, origin, rays)
    for index, solid in enumerate(scene.solids):
        distance = solid_distance(solid, origin, rays)
        closer = distance < depth
        depth = np.where(closer, distance, depth)
        surface = np.where(closer, FIRST_SOLID + index, surface)
    points = origin + depth * rays
    normals = _ROOM_NORMALS[:, np.minimum(surface, FACE_FAR)]
    curvature = np.zeros((2, rays.shape[1]))
    for index, solid in enumerate(scene.solids):
        on_solid = np.flatnonzero(surface == FIRST_SOLID + index)
        if on_solid.size:
            normals[:, on_solid], curvature[:, on_solid] = _solid_surface(
                solid, points[:, on_solid]
            )
    window = _inside_window(scene.room, points, surface)
    return Hits(rays, depth, points, normals, curvature, surface, window)


def in_shadow(scene: Scene, points: Array, normals: Array) -> NDArray[np.bool_]:
    """Return whether a solid is between each point [3, R] and the lamp."""
    origins = points + 1e-4 * normals
    towards = scene.lamp.position[:, None] - origins
    shadow = np.zeros(points.shape[1], dtype=bool)
    for solid in scene.solids:
        shadow |= solid_distance(solid, origins, towards) < 1.0
    return shadow


_ROOM_NORMALS = np.array(
    [[1, -1, 0, 0, 0, 0], [0, 0, 1, -1, 0, 0], [0, 0, 0, 0, 1, -1]], dtype=np.float64
)


def _room_distance(room: Room, origin: Array, rays: Array) -> tuple[Array, NDArray[np.int64]]:
    with np.errstate(divide="ignore"):
        walls = np.where(rays > 0, room.high[:, None] - origin, room.low[:, None] - origin)
        distance = np.where(rays == 0, np.inf, walls / rays)  # [3, R]
    axis = distance.argmin(axis=0)
    columns = np.arange(rays.shape[1])
    return distance[axis, columns], 2 * axis + (rays[axis, columns] > 0)


def _inside_window(room: Room, points: Array, surface: NDArray[np.int64]) -> NDArray[np.bool_]:
    if room.window is None:
        return np.zeros(surface.shape, dtype=bool)
    left, right, bottom, top = room.window
    x, y, _ = points
    return (surface == FACE_FAR) & (x > left) & (x < right) & (y > bottom) & (y < top)


def solid_distance(solid: Solid, origins: Array, directions: Array) -> Array:
    """Return multiples of `directions` [3, R] from `origins` to the solid, [R]; inf for a miss.

    The origins are outside the solid, which is convex: the first intersection is the entry.
    """
    origins = to_local(solid, origins)
    directions = _to_axes(solid, directions)
    with np.errstate(divide="ignore", invalid="ignore"):
        if solid.shape == "sphere":
            return _sphere_distance(solid, origins, directions)
        if solid.shape == "box":
            return _box_distance(solid, origins, directions)
        return _round_distance(solid, origins, directions)


def to_local(solid: Solid, points: Array) -> Array:
    """Return points [3, R] in the solid's frame: centre at 0, edges of a box along the axes."""
    return _to_axes(solid, points - solid.centre[:, None])


def _to_axes(solid: Solid, vectors: Array) -> Array:
    return _turn(vectors, solid.yaw) if solid.shape == "box" else vectors


def _turn(vectors: Array, yaw: float) -> Array:
    x, y, z = vectors
    cosine, sine = np.cos(yaw), np.sin(yaw)
    return np.stack([cosine * x - sine * z, y, sine * x + cosine * z])


def _roots(a: Array, half_b: Array, c: Array) -> tuple[Array, Array]:
    """Return both roots of a t^2 + 2 half_b t + c, NaN where there are none."""
    root = np.sqrt(half_b * half_b - a * c)
    return (-half_b - root) / a, (-half_b + root) / a


def _dot(a: Array, b: Array) -> Array:
    return a[0] * b[0] + a[1] * b[1] + a[2] * b[2]


def _sphere_distance(solid: Solid, origins: Array, directions: Array) -> Array:
    near, _ = _roots(
        _dot(directions, directions),
        _dot(origins, directions),
        _dot(origins, origins) - solid.radius**2,
    )
    return np.where(near > _EPS, near, np.inf)


def _box_distance(solid: Solid, origins: Array, directions: Array) -> Array:
    half = np.array([solid.radius, solid.half_height, solid.radius])[:, None]
    first, second = (-half - origins) / directions, (half - origins) / directions
    enter = np.minimum(first, second).max(axis=0)
    leave = np.maximum(first, second).min(axis=0)
    return np.where((enter <= leave) & (enter > _EPS), enter, np.inf)


def _profile(solid: Solid) -> tuple[float, float]:
    """Return (m, s): the radius of a cylinder or cone at height y over its centre is m - s y."""
    if solid.shape == "cylinder":
        return solid.radius, 0.0
    return solid.radius / 2, solid.radius / (2 * solid.half_height)


def _round_distance(solid: Solid, origins: Array, directions: Array) -> Array:
    middle, slope = _profile(solid)
    (ox, oy, oz), (dx, dy, dz) = origins, directions
    radius = middle - slope * oy
    sides = _roots(
        dx * dx + dz * dz - (slope * dy) ** 2,
        ox * dx + oz * dz + radius * slope * dy,
        ox * ox + oz * oz - radius * radius,
    )
    best = np.full(directions.shape[1], np.inf)
    for t in sides:
        on_side = (t > _EPS) & (np.abs(oy + t * dy) <= solid.half_height)
        best = np.where(on_side & (t < best), t, best)
    for level in (-solid.half_height, solid.half_height):
        t = (level - oy) / dy
        reach = middle - slope * level
        on_cap = (t > _EPS) & ((ox + t * dx) ** 2 + (oz + t * dz) ** 2 <= reach * reach)
        best = np.where(on_cap & (t < best), t, best)
    return best


def _solid_surface(solid: Solid, points: Array) -> tuple[Array, Array]:
    """Return outward normals [3, R] and principal curvatures [2, R] at points on the solid."""
    local = to_local(solid, points)
    curvature = np.zeros((2, points.shape[1]))
    if solid.shape == "sphere":
        curvature[:] = 1 / solid.radius
        return local / solid.radius, curvature
    if solid.shape == "box":
        half = np.array([solid.radius, solid.half_height, solid.radius])[:, None]
        axis = (np.abs(local) / half).argmax(axis=0)
        columns = np.arange(points.shape[1])
        normals = np.zeros_like(local)
        normals[axis, columns] = np.sign(local[axis, columns])
        return _turn(normals, -solid.yaw), curvature
    x, y, z = local
    _, slope = _profile(solid)
    radius = np.maximum(np.hypot(x, z), _EPS)
    length = np.hypot(1.0, slope)
    normals = np.stack([x / radius, np.full_like(x, slope), z / radius]) / length
    curvature[0] = 1 / (radius * length)
    cap = np.abs(np.abs(y) - solid.half_height) < 1e-9
    normals[:, cap] = np.stack([np.zeros_like(y), np.sign(y), np.zeros_like(y)])[:, cap]
    curvature[:, cap] = 0.0
    return normals, curvature
