"""Bounds of what a description of a network may ask for; each is far above what people train.

They are checked before anything of that size is built, in a configuration and in a file alike.
"""

from __future__ import annotations

MAX_TASKS = 10_000
MAX_BRANCHES = 1_000
MAX_IMAGE_SIDE = 4_096  # pixels; also of the map that a decoder's stages give
MAX_CLASSES = 1_000_000  # or values, of a task with one label for an image
MAX_PIXEL_CHANNELS = 4_096  # classes or values of a task with a label for every pixel
MAX_WIDTH = 2**20  # channels or units of a layer
MAX_STAGES = 16  # of a decoder


def is_count(value: object, most: int) -> bool:
    """Return whether a value is an integer from 1 to `most`."""
    return isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= most
