"""Plot of a comparison: paired change of each recipe with its interval, its cost, and by task."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from matplotlib.axes import Axes

from trainer.compare.paired import LEVEL, PairedChange
from trainer.compare.table import RecipeResult
from trainer.figures import figure_file

_LABELLED_TASKS = 80  # more rows have no names: nobody could read them
_MOST_INCHES = 20.0  # height of the figure
_SATURATED = 95  # percentile of the changes at the ends of the colour scale
_COLOURS = {1: "tab:blue", -1: "tab:red", 0: "dimgrey"}  # better, worse, undecided


class _Change(NamedTuple):
    """A row that is drawn, and its change with a mean that is finite."""

    row: RecipeResult
    change: PairedChange
    mean: float

    @property
    def error(self) -> list[list[float]] | None:
        """The lengths of the bar to both sides; None for one seed."""
        low, high = self.change.low, self.change.high
        return None if low is None or high is None else [[self.mean - low], [high - self.mean]]


def draw_comparison(results: Sequence[RecipeResult], path: Path) -> None:
    """Write the plot of all recipes that have a finished cell.

    Without a reference, as with a single recipe, it shows the training loss.

    Args:
        results: The recipes.
        path: Image file.
    """
    results = [result for result in results if result.done]
    changes = [
        _Change(r, r.gain, r.gain.mean)
        for r in results
        if r.gain is not None and r.gain.mean is not None and math.isfinite(r.gain.mean)
    ]
    drawn = {each.row.recipe for each in changes}
    tasks = list(dict.fromkeys(name for each in changes for name in each.row.gains))
    panels = 3 if changes else 1
    rows = max(len(results), len(tasks))
    size = (5.5 * panels, min(max(4.5, 0.24 * rows), _MOST_INCHES))
    with figure_file(path, 1, panels, size=size) as axes:
        if not changes:
            _draw_losses(axes[0, 0], results)
            return
        _draw_paired(axes[0, 0], changes, [r for r in results if r.recipe not in drawn])
        _draw_cost(axes[0, 1], changes)
        _draw_tasks(axes[0, 2], [each.row for each in changes], tasks)


def _draw_losses(axis: Axes, results: Sequence[RecipeResult]) -> None:
    for row, result in enumerate(results):
        if result.train_loss is not None:
            values = result.train_loss.values
            axis.plot(values, [row] * len(values), ".", color="black", markersize=4)
            axis.plot(result.train_loss.mean, row, "D", color="steelblue")
    _name_rows(axis, [result.recipe for result in results])
    axis.set(xlabel="training loss", title="diamond: mean; dots: seeds")


def _draw_paired(axis: Axes, changes: Sequence[_Change], others: Sequence[RecipeResult]) -> None:
    for row, each in enumerate(changes):
        if each.row.is_reference:
            axis.plot(0, row, "|", color="black", markersize=14)
            continue
        values = each.change.values
        axis.plot(values, [row] * len(values), "o", color="black", alpha=0.25, markersize=4)
        colour = _COLOURS[each.change.sign]
        axis.errorbar(each.mean, row, xerr=each.error, fmt="D", color=colour, capsize=4, ms=5)
    for row, _ in enumerate(others, len(changes)):
        axis.text(0, row, " no comparison", va="center", fontsize=8)
    axis.axvline(0, color="black", linewidth=0.8)
    references = list(dict.fromkeys(each.change.reference for each in changes))
    names = [each.row.recipe for each in changes]
    if len(references) > 1:
        names = [
            name if each.row.is_reference else f"{name}\nagainst {each.change.reference}"
            for name, each in zip(names, changes, strict=True)
        ]
    _name_rows(axis, names + [result.recipe for result in others])
    against = f" against {references[0]}" if len(references) == 1 else ""
    axis.set(
        xlabel=f"mean change{against}, % (right: better)",
        title=f"bar: {100 * LEVEL:.0f} % interval; dots: seeds, paired",
    )


def _name_rows(axis: Axes, names: Sequence[str]) -> None:
    axis.set_yticks(range(len(names)), names)
    axis.set_ylim(len(names) - 0.5, -0.5)
    axis.grid(axis="x", linewidth=0.4)


def _draw_cost(axis: Axes, changes: Sequence[_Change]) -> None:
    for each, marker in zip(changes, _markers(len(changes)), strict=True):
        if each.row.seconds is not None:
            error = None if each.row.is_reference else each.error
            place = (each.row.seconds.mean, each.mean)
            axis.errorbar(*place, error, fmt=marker, label=each.row.recipe, elinewidth=0.8)
    axis.axhline(0, color="black", linewidth=0.8)
    axis.set(xlabel="seconds, search included", ylabel="mean change, %", title="cost")
    axis.set_xlim(0, None)
    axis.margins(x=0.1)
    axis.grid(linewidth=0.4)
    # Below the axes, where it hides no point.
    axis.legend(loc="upper center", bbox_to_anchor=(0.5, -0.16), ncols=3, frameon=False)


def _markers(count: int) -> list[str]:
    markers = "osD^v<>Ph*X"
    return [markers[number % len(markers)] for number in range(count)]


def _draw_tasks(axis: Axes, results: Sequence[RecipeResult], tasks: Sequence[str]) -> None:
    cells = [[r.gains[t].mean if t in r.gains else np.nan for r in results] for t in tasks]
    limit = float(np.nanpercentile(np.abs(cells), _SATURATED)) or 1.0
    beyond = bool(np.nanmax(np.abs(cells)) > limit)
    image = axis.imshow(
        cells, aspect="auto", cmap="RdBu", vmin=-limit, vmax=limit, interpolation="nearest"
    )
    if len(tasks) <= _LABELLED_TASKS:
        axis.set_yticks(range(len(tasks)), tasks, fontsize=7)
    else:
        axis.set(ylabel="task")
    axis.set_xticks(range(len(results)), [r.recipe for r in results], rotation=45, ha="right")
    axis.set(title="mean change of each task, % (blue: better)")
    axis.figure.colorbar(image, ax=axis, extend="both" if beyond else "neither")
