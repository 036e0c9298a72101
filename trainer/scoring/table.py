"""Print the scores of a model as a table with one line per task, and their summary."""

from __future__ import annotations

import math

from rich.console import Console

from trainer.scoring.scores import Evaluation
from trainer.scoring.summary import CHANGE, RelativeChange
from trainer.tables import print_table


def print_scores(evaluation: Evaluation, console: Console, reference: str | None = None) -> None:
    """Print the score of every task, then the mean relative changes with their definition.

    Args:
        reference: Name of the reference that the model was compared with; None without one.
    """
    header = ["task", "group", "metric", "model", "constant", "change, %"]
    if reference is not None:
        header.append(f"against {reference}, %")
    constant = evaluation.against_constant
    rows = []
    for score in evaluation.scores:
        better = "↑" if score.higher_is_better else "↓"
        row = [score.task, str(score.group), f"{score.metric} {better}"]
        row += [_number(score.value), _number(score.constant)]
        row.append(_change(constant.by_task.get(score.task)))
        if reference is not None:
            row.append(_change(score.gain))
        rows.append(row)
    print_table(console, header, rows)

    def write(line: str) -> None:
        console.print(line, markup=False)

    write(_mean("the constant prediction", constant, len(rows)))
    if reference is not None:
        gains = evaluation.summary.gains
        left_out = tuple(score.task for score in evaluation.scores if score.task not in gains)
        write(_mean(reference, RelativeChange(gains, left_out), len(rows)))
    write(CHANGE)
    worse = [score.task for score in evaluation.scores if not score.beats_constant]
    if worse:
        write(f"Not better than their constant: {len(worse)} ({', '.join(worse)})")


def _mean(reference: str, change: RelativeChange, num_tasks: int) -> str:
    text = f"Mean change against {reference}: {_change(change.mean) or '-'} %"
    return f"{text} over {len(change.by_task)} of {num_tasks} tasks"


def _number(value: float) -> str:
    return f"{value:.4g}" if math.isfinite(value) else "-"


def _change(value: float | None) -> str:
    return "" if value is None else f"{value:+.2f}"
