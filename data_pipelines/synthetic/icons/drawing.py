"""Draw an outline as a picture of any size."""

from __future__ import annotations

import io
from types import ModuleType

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from dmtg.optional_packages import import_package

_SIDE = 24  # units of an outline


def drawing_package() -> ModuleType:
    """Return the package that draws.

    Raises:
        ValueError: It cannot be imported.
    """
    return import_package("resvg_py", "drawing icons", "install it with pip install resvg-py")


def draw(outline: str, size: int) -> NDArray[np.uint8]:
    """Return the area inside an outline in black on white, [H, W].

    Args:
        outline: SVG path data in a square of 24 units.
        size: Pixels a side.

    Raises:
        ValueError: The package that draws cannot be imported.
    """
    svg = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_SIDE} {_SIDE}">'
        f'<path d="{outline}"/></svg>'
    )
    png = drawing_package().svg_to_bytes(
        svg_string=svg, width=size, height=size, background="white", skip_system_fonts=True
    )
    return np.asarray(Image.open(io.BytesIO(png)).convert("L"))
