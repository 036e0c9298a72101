"""Plot of a comparison: score of each recipe, its cost, and its gain on each task."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes

from trainer.compare.table import REFERENCE, RecipeResult, Spread
from trainer.figures import figure_file


def draw_comparison(results: Sequence[RecipeResult], path: Path) -> None:
    """Write the plot of all recipes that have a finished cell."""
    results = [result for result in results if result.done]
    tasks = [name for name in results[0].tasks if any(name in r.gains for r in results)]
    panels = 3 if tasks else 2
    size = (5.5 * panels, max(4.5, 0.24 * len(tasks)))
    with figure_file(path, 1, panels, size=size) as axes:
        _draw_scores(axes[0, 0], results)
        _draw_cost(axes[0, 1], results)
        if tasks:
            _draw_gains(axes[0, 2], results, tasks)


def _score(result: RecipeResult) -> Spread:
    score = result.total_error or result.train_loss
    assert score is not None, "a finished cell has a loss"
    return score


def _score_name(results: Sequence[RecipeResult]) -> str:
    return "total error, %" if results[0].total_error is not None else "training loss"


def _draw_scores(axis: Axes, results: Sequence[RecipeResult]) -> None:
    for row, result in enumerate(results):
        score = _score(result)
        axis.errorbar(score.mean, row, xerr=score.std, fmt="D", color="steelblue", capsize=3)
        axis.plot(score.values, [row] * len(score.values), ".", color="black", markersize=4)
    axis.set_yticks(range(len(results)), [result.recipe for result in results])
    axis.invert_yaxis()
    axis.grid(axis="x", linewidth=0.4)
    axis.set(title=f"{_score_name(results)} (mean, deviation; dots: seeds)")


def _draw_cost(axis: Axes, results: Sequence[RecipeResult]) -> None:
    for result in results:
        score, seconds = _score(result), result.seconds
        assert seconds is not None, "a finished cell has taken time"
        axis.errorbar(seconds.mean, score.mean, xerr=seconds.std, yerr=score.std, fmt="o")
        axis.annotate(result.recipe, (seconds.mean, score.mean), (4, 4), textcoords="offset points")
    axis.set(xlabel="seconds, search included", ylabel=_score_name(results), title="cost")
    axis.margins(x=0.2)


def _draw_gains(axis: Axes, results: Sequence[RecipeResult], tasks: Sequence[str]) -> None:
    cells = [[r.gains[t].mean if t in r.gains else np.nan for r in results] for t in tasks]
    limit = float(np.nanpercentile(np.abs(cells), 95)) or 1.0  # outliers saturate the color scale
    image = axis.imshow(cells, aspect="auto", cmap="RdBu", vmin=-limit, vmax=limit)
    axis.set_yticks(range(len(tasks)), tasks, fontsize=7)
    axis.set_xticks(range(len(results)), [r.recipe for r in results], rotation=45, ha="right")
    axis.set(title=f"gain over {REFERENCE}, %")
    axis.figure.colorbar(image, ax=axis)
