"""Plot of a comparison: score of each recipe, its cost, and its change on each task."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes

from trainer.compare.table import RecipeResult, Spread
from trainer.figures import figure_file

_LABELLED_TASKS = 80  # more rows have no names: nobody could read them
_MOST_INCHES = 20.0  # height of the figure
_SATURATED = 95  # percentile of the changes at the ends of the colour scale


def draw_comparison(
    results: Sequence[RecipeResult], path: Path, reference: str | None = None
) -> None:
    """Write the plot of all recipes that have a finished cell.

    Args:
        results: The recipes.
        path: Image file.
        reference: The recipe that changes are relative to; without one the score is the loss.
    """
    results = [result for result in results if result.done]
    tasks = [name for name in results[0].tasks if any(name in r.gains for r in results)]
    panels = 3 if tasks else 2
    size = (5.5 * panels, min(max(4.5, 0.24 * len(tasks)), _MOST_INCHES))
    with figure_file(path, 1, panels, size=size) as axes:
        score = "training loss"
        if reference is not None:
            score = f"mean change against {reference}, %\n(higher is better)"
        _draw_scores(axes[0, 0], results, score)
        _draw_cost(axes[0, 1], results, score)
        if tasks:
            _draw_changes(axes[0, 2], results, tasks, reference)


def _score(result: RecipeResult) -> Spread:
    score = result.gain or result.train_loss
    assert score is not None, "a finished cell has a loss"
    return score


def _draw_scores(axis: Axes, results: Sequence[RecipeResult], name: str) -> None:
    for row, result in enumerate(results):
        score = _score(result)
        axis.errorbar(score.mean, row, xerr=score.std, fmt="D", color="steelblue", capsize=3)
        axis.plot(score.values, [row] * len(score.values), ".", color="black", markersize=4)
    axis.set_yticks(range(len(results)), [result.recipe for result in results])
    axis.invert_yaxis()
    axis.grid(axis="x", linewidth=0.4)
    axis.axvline(0, color="grey", linewidth=0.8)  # the axis includes it
    axis.set(xlabel=name, title="diamond and bar: mean, deviation; dots: seeds")


def _draw_cost(axis: Axes, results: Sequence[RecipeResult], name: str) -> None:
    for result, marker in zip(results, _markers(len(results)), strict=True):
        score, seconds = _score(result), result.seconds
        assert seconds is not None, "a finished cell has taken time"
        place, deviation = (seconds.mean, score.mean), (score.std, seconds.std)
        axis.errorbar(*place, *deviation, fmt=marker, label=result.recipe)
    axis.axhline(0, color="grey", linewidth=0.8)
    axis.set(xlabel="seconds, search included", ylabel=name, title="cost", xlim=(0, None))
    axis.margins(x=0.1)
    axis.grid(linewidth=0.4)
    # Below the axes, where it hides no point.
    axis.legend(loc="upper center", bbox_to_anchor=(0.5, -0.16), ncols=3, frameon=False)


def _markers(count: int) -> list[str]:
    markers = "osD^v<>Ph*X"
    return [markers[number % len(markers)] for number in range(count)]


def _draw_changes(
    axis: Axes, results: Sequence[RecipeResult], tasks: Sequence[str], reference: str | None
) -> None:
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
    axis.set(title=f"change against {reference}, % (blue: better)")
    axis.figure.colorbar(image, ax=axis, extend="both" if beyond else "neither")
