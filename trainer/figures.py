"""Figures that are written to files, in which names appear as they are."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
from numpy.typing import NDArray

from dmtg.files import atomic_path


@contextmanager
def figure_file(
    path: Path,
    rows: int,
    columns: int,
    *,
    size: tuple[float, float],
    dpi: int = 110,
    width_ratios: tuple[float, ...] | None = None,
) -> Iterator[NDArray[np.object_]]:
    """Give the axes of a new figure, and write it to a file at the end of the block.

    Dollar signs are not math markup: names of tasks and classes come from data and models.

    Args:
        path: Image file, replaced if it exists.
        rows: Rows of axes.
        columns: Columns of axes.
        size: Width and height in inches.
        dpi: Pixels per inch.
        width_ratios: Relative widths of the columns; None makes them equal.
    """
    with matplotlib.rc_context({"text.parse_math": False}):  # read when a text is created
        figure, axes = plt.subplots(
            rows, columns, figsize=size, squeeze=False, width_ratios=width_ratios
        )
        try:
            yield axes
            figure.tight_layout()
            with atomic_path(path, sync=False) as partial:
                figure.savefig(partial, dpi=dpi)
        finally:
            plt.close(figure)
