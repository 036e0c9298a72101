"""Dense labels of a ray-cast scene in the conventions of the released Taskonomy.

R rays (H * W, row by row); H, W picture sides. Camera frame: x right, y down, z forward.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from data_pipelines.synthetic.raycast import (
    FACE_CEILING,
    FACE_FLOOR,
    FIRST_SOLID,
    Hits,
)
from data_pipelines.synthetic.scene import SHAPES, Array, Scene

DEPTH_UNIT = 512.0  # levels a metre
NO_READING = 65535
# Taskonomy's segmentation has 18 ids; the unused ones do not occur in a room.
SEMANTIC_CLASSES = (
    "uncertain", "wall", "floor", "ceiling", "window", *SHAPES,
    *(f"unused_{i}" for i in range(9, 18)),
)  # fmt: skip
DENSE_LABELS = (
    "depth_zbuffer", "depth_euclidean", "normal", "segment_semantic", "edge_occlusion",
    "edge_texture", "keypoints2d", "reshading", "principal_curvature",
)  # fmt: skip

_UNCERTAIN_COSINE = 0.17  # below it, a pixel of a solid is labelled uncertain
_CURVATURE_LEVELS = 40.0  # levels for 1/m
_RESHADING_REACH = 4.0  # metres
_TEXTURE_LEVELS = 17.0
_CORNER_LEVELS = 18.0
_GREY = np.array([0.299, 0.587, 0.114])


def dense_labels(
    scene: Scene, hits: Hits, picture: NDArray[np.uint8]
) -> dict[str, NDArray[np.uint8] | NDArray[np.uint16]]:
    """Return every label of DENSE_LABELS, [H, W] or [H, W, 3], for `picture` [H, W, 3].

    Geometry is exact at the pixel centres. As in the published dataset, edge_texture and
    keypoints2d are filters of the picture.
    """
    size = picture.shape[0]
    length = np.sqrt((hits.rays * hits.rays).sum(axis=0))
    facing = -(hits.rays * hits.normals).sum(axis=0) / length  # cosine towards the camera
    semantic = _semantic(scene, hits, facing)
    grey = picture @ _GREY
    return {
        "depth_zbuffer": _depth(hits.depth, hits).reshape(size, size),
        "depth_euclidean": _depth(hits.depth * length, hits).reshape(size, size),
        "normal": _rows_to_image(127.5 * (1.0 + scene.camera.axes() @ hits.normals), size),
        "segment_semantic": semantic.reshape(size, size),
        "edge_occlusion": _occlusion(
            hits.depth.reshape(size, size), hits.surface.reshape(size, size)
        ),
        "edge_texture": _edges(grey),
        "keypoints2d": _corners(grey),
        "reshading": _reshading(hits.depth * length, facing, size),
        "principal_curvature": _curvature(hits.curvature, size),
    }


def _rows_to_image(rows: Array, size: int) -> NDArray[np.uint8]:
    levels = np.clip(np.rint(rows), 0, 255).astype(np.uint8)
    return np.ascontiguousarray(levels.T).reshape(size, size, 3)


def _to_uint16(values: Array) -> NDArray[np.uint16]:
    return np.clip(np.rint(values), 0, NO_READING - 1).astype(np.uint16)


def _depth(metres: Array, hits: Hits) -> NDArray[np.uint16]:
    levels = _to_uint16(metres * DEPTH_UNIT)
    levels[hits.window] = NO_READING  # a depth sensor measures nothing on glass
    return levels


def _semantic(scene: Scene, hits: Hits, facing: Array) -> NDArray[np.uint8]:
    ids = np.full(hits.surface.shape, SEMANTIC_CLASSES.index("wall"), dtype=np.uint8)
    ids[hits.surface == FACE_FLOOR] = SEMANTIC_CLASSES.index("floor")
    ids[hits.surface == FACE_CEILING] = SEMANTIC_CLASSES.index("ceiling")
    ids[hits.window] = SEMANTIC_CLASSES.index("window")
    for index, solid in enumerate(scene.solids):
        ids[hits.surface == FIRST_SOLID + index] = SEMANTIC_CLASSES.index(solid.shape)
    ids[(hits.surface >= FIRST_SOLID) & (facing < _UNCERTAIN_COSINE)] = 0
    return ids


def _occlusion(depth: Array, surface: NDArray[np.int64]) -> NDArray[np.uint16]:
    """Return the depth gap to the neighbour across an occluding contour, in DEPTH_UNIT levels.

    In a convex room with convex solids, contours are the borders of solids.
    """
    gap = np.zeros_like(depth)
    rows, columns = np.s_[:-1, :], np.s_[:, :-1]
    for here, there in ((rows, np.s_[1:, :]), (columns, np.s_[:, 1:])):
        meets = surface[here] != surface[there]
        meets &= np.maximum(surface[here], surface[there]) >= FIRST_SOLID
        step = np.where(meets, np.abs(depth[here] - depth[there]), 0.0)
        gap[here] = np.maximum(gap[here], step)
        gap[there] = np.maximum(gap[there], step)
    return _to_uint16(gap * DEPTH_UNIT)


def _edges(grey: Array) -> NDArray[np.uint16]:
    """Return the Sobel magnitude of the smoothed picture."""
    smooth = ndimage.gaussian_filter(grey, 0.8, mode="nearest")
    across = ndimage.sobel(smooth, axis=1, mode="nearest")
    down = ndimage.sobel(smooth, axis=0, mode="nearest")
    return _to_uint16(_TEXTURE_LEVELS * np.hypot(across, down))


def _corners(grey: Array) -> NDArray[np.uint16]:
    """Return the root of the structure tensor's smaller eigenvalue (Shi-Tomasi corner score)."""
    down, across = np.gradient(grey)
    xx, yy, xy = (
        ndimage.gaussian_filter(product, 1.0, mode="nearest")
        for product in (across * across, down * down, across * down)
    )
    smaller = (xx + yy) / 2 - np.hypot((xx - yy) / 2, xy)
    return _to_uint16(_CORNER_LEVELS * np.sqrt(np.maximum(smaller, 0.0)))


def _reshading(distance: Array, facing: Array, size: int) -> NDArray[np.uint8]:
    """Return the Lambert shading of grey surfaces by a lamp at the camera."""
    light = 1.5 * facing / (1.0 + (distance / _RESHADING_REACH) ** 2)
    return _rows_to_image(np.broadcast_to(255.0 * light, (3, light.size)), size)


def _curvature(curvature: Array, size: int) -> NDArray[np.uint8]:
    """Return principal curvatures in two channels, 127 for flat; the third channel is 0."""
    levels = np.zeros((3, curvature.shape[1]))
    levels[:2] = 127.0 + _CURVATURE_LEVELS * curvature
    return _rows_to_image(levels, size)
