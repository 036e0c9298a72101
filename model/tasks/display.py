"""How dense values are drawn: one class for each value of `TaskSpec.display`.

Legend: C channels, H, W.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from typing_extensions import override

Picture = NDArray[np.uint8]  # [H,W,3]


class Display:
    """The first channel in a colour map that spans its 1st to 99th percentile.

    Args:
        colour_map: Name of a map of matplotlib.
    """

    def __init__(self, colour_map: str = "gray") -> None:
        self.colour_map = colour_map

    def value_range(self, values: NDArray[np.generic]) -> tuple[float, float]:
        """Return the values at the ends of the colour map; infinite values do not count."""
        low, high = self._percentiles(values)
        return low, max(high, low + 1e-6)

    def draw(self, values: NDArray[np.generic]) -> Picture:
        """Draw natural values [C,H,W]."""
        from matplotlib import colormaps  # slow to import

        first = np.asarray(values[0], np.float64)
        low, high = self.value_range(first)
        shade = np.clip((first - low) / (high - low), 0, 1)
        return np.asarray(255 * colormaps[self.colour_map](shade)[..., :3], np.uint8)

    def caption(self, values: NDArray[np.generic], unit: str) -> str:
        """Return which of the natural values [C,H,W] the colours stand for; may be empty."""
        return self.range_text(values[0], unit)

    def range_text(self, values: NDArray[np.generic], unit: str) -> str:
        """Return the range of natural values of any shape, as in "0.5 to 8.2 m"."""
        low, high = self.value_range(values)
        return f"{low:.3g} to {high:.3g} {unit}".rstrip()

    def _percentiles(self, values: NDArray[np.generic]) -> tuple[float, float]:
        finite = values[np.isfinite(values)]
        low, high = np.percentile(finite, (1, 99)) if finite.size else (0.0, 1.0)
        return float(low), float(high)


class SignedDisplay(Display):
    """As `Display`, with zero in the middle of the colour map."""

    def _percentiles(self, values: NDArray[np.generic]) -> tuple[float, float]:
        low, high = super()._percentiles(values)
        largest = max(abs(low), abs(high))
        return -largest, largest


class NormalDisplay(Display):
    """Three channels as the directions that red, green and blue stand for."""

    def draw(self, values: NDArray[np.generic]) -> Picture:
        """Draw vectors [3,H,W] of any length."""
        unit = values / np.maximum(np.linalg.norm(values, axis=0, keepdims=True), 1e-6)
        return np.asarray(np.moveaxis(127.5 * (unit + 1), 0, -1), np.uint8)

    @override
    def caption(self, values: NDArray[np.generic], unit: str) -> str:
        """Return nothing: colours stand for directions."""
        return ""


class ClassDisplay(Display):
    """A colour for every class; twenty of them, then the first again."""

    def draw(self, values: NDArray[np.generic]) -> Picture:
        """Draw class ids [1,H,W]."""
        from matplotlib import colormaps  # slow to import

        colours = colormaps["tab20"](np.arange(20))[:, :3]
        return np.asarray(255 * colours[values[0].astype(int) % 20], np.uint8)

    @override
    def caption(self, values: NDArray[np.generic], unit: str) -> str:
        """Return nothing: colours stand for classes."""
        return ""


DISPLAYS: dict[str, Display] = {
    "grey": Display(),
    "depth": Display("viridis_r"),
    "normal": NormalDisplay(),
    "classes": ClassDisplay(),
    "signed": SignedDisplay("coolwarm"),
}
