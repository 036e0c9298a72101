"""Print the scores of a model as a table with one line per task, and their summary."""

from __future__ import annotations

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from trainer.scoring.scores import Evaluation


def print_scores(evaluation: Evaluation, console: Console) -> None:
    """Print the score of every task, with its gain if there is a reference, then the summary."""
    summary = evaluation.summary
    compared = summary.normalized_gain is not None
    table = Table(
        "task", "group", "metric", "model", "constant", "better", *(["gain %"] if compared else [])
    )
    for score in evaluation.scores:
        better = "yes" if score.beats_constant else "no"
        values = [f"{score.value:.4g}", f"{score.constant:.4g}", better]
        if compared:
            values.append("" if score.gain is None else f"{score.gain:+.2f}")
        table.add_row(escape(score.task), str(score.group), score.metric, *values)
    console.print(table)
    if summary.total_error is not None:
        console.print(f"total error: {summary.total_error:.4g} %")
    if compared:
        console.print(f"normalized gain: {summary.normalized_gain:+.4g} %")
