"""Write the tables of a comparison to the terminal, to Markdown and to JSON, with the plot."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console

from dmtg.files import atomic_write
from model.metrics import metric_for
from model.tasks.spec import TaskSpec
from trainer.compare.plot import draw_comparison
from trainer.compare.table import RecipeResult, Spread, choose_reference, specs_of, tabulate
from trainer.json_file import write_json
from trainer.scoring.summary import CHANGE
from trainer.tables import print_table

Rows = list[list[str]]  # the first row is the header

_NOTES = (
    "Mean ± sample standard deviation over the seeds. Seconds are those of the whole process, a "
    "search included; parameters are those of the pruned model; agreement is the mean adjusted "
    "Rand index of two seeds' groupings."
)


def notes(results: Sequence[RecipeResult], num_tasks: int, reference: str | None) -> str:
    """Return the sentences that define the columns of the tables."""
    if reference is None:
        return _NOTES
    compared = max(len(result.gains) for result in results)
    return (
        f"{_NOTES} The mean change is that of {compared} of {num_tasks} tasks against the mean of "
        f"the runs of {reference}. {CHANGE} A task whose reference is 0 has no change."
    )


def save_comparison(
    records: Sequence[Mapping[str, Any]], out: Path, about: str, reference: str | None = None
) -> tuple[list[RecipeResult], list[Rows], str]:
    """Write `compare.json`, `compare.md` and, if any cell is finished, `compare.png`.

    Args:
        records: Records of the cells.
        out: Folder of the comparison.
        about: Sentence that describes the comparison.
        reference: The recipe to compare with, see `choose_reference`.

    Returns:
        The results by recipe, their tables, and the sentences that define their columns.
    """
    reference = choose_reference(records, reference)
    results, specs = tabulate(records, reference), specs_of(records)
    tables = [recipe_rows(results, reference)]
    defined = notes(results, len(specs), reference)
    picture = ""
    if specs:
        tables.append(task_rows(results, specs))
        draw_comparison(results, out / "compare.png", reference)
        picture = "\n\n![comparison](compare.png)"
    write_json(
        out / "compare.json",
        {
            "about": about,
            "reference": reference,
            "recipes": [asdict(r) for r in results],
            "cells": list(records),
        },
        indent=1,
    )
    text = f"# Comparison of grouping recipes\n\n{about} {defined}{picture}"
    with atomic_write(out / "compare.md") as file:
        file.write(to_markdown(tables, text))
    return results, tables, defined


def shown(spread: Spread | None, digits: int = 4) -> str:
    """Return mean and standard deviation as text, the mean to `digits` digits; `-` for None."""
    if spread is None:
        return "-"
    mean = f"{spread.mean:.{digits}g}"
    return mean if spread.std is None else f"{mean} ± {spread.std:.2g}"


def recipe_rows(results: Sequence[RecipeResult], reference: str | None = None) -> Rows:
    """Return one row for every recipe, without columns that have no value."""
    columns = {
        "recipe": [result.recipe for result in results],
        "seeds": [_seeds(result) for result in results],
        f"mean change against {reference}, %": [_change(result.gain) for result in results],
        "training loss": [shown(result.train_loss) for result in results],
        "seconds": [shown(result.seconds, 3) for result in results],
        "parameters": [_count(result.parameters) for result in results],
        "groups": [_count(result.groups) for result in results],
        "agreement (ARI)": [
            "-" if result.agreement is None else f"{result.agreement:.2f}" for result in results
        ],
    }
    filled = {name: column for name, column in columns.items() if set(column) != {"-"}}
    return [list(filled), *(list(row) for row in zip(*filled.values(), strict=True))]


def task_rows(results: Sequence[RecipeResult], specs: Sequence[TaskSpec]) -> Rows:
    """Return one row for every task and one column for every recipe with the primary metric."""
    rows = [["task", "metric", *(result.recipe for result in results)]]
    for spec in specs:
        metric = metric_for(spec)
        name = f"{metric.primary} {'↑' if metric.higher_is_better else '↓'}"
        values = [shown(result.tasks.get(spec.name), 3) for result in results]
        rows.append([spec.name, name, *values])
    return rows


def _change(spread: Spread | None) -> str:
    if spread is None:
        return "-"
    mean = f"{round(spread.mean, 1) + 0.0:+.1f}"  # no minus sign before a zero
    return mean if spread.std is None else f"{mean} ± {spread.std:.1f}"


def _seeds(result: RecipeResult) -> str:
    return f"{result.done} ({result.failed} failed)" if result.failed else str(result.done)


def _count(spread: Spread | None) -> str:
    if spread is None:
        return "-"
    if len(set(spread.values)) == 1:
        return f"{spread.mean:,.0f}"
    digits = 1 if spread.mean < 100 else 0
    return f"{spread.mean:,.{digits}f} ± {spread.std:,.{digits}f}"


def print_tables(tables: Sequence[Rows], console: Console) -> None:
    """Print the tables to the console."""
    for header, *rows in tables:
        print_table(console, header, rows)


def to_markdown(tables: Sequence[Rows], introduction: str) -> str:
    """Return the introduction followed by the tables, as Markdown."""
    parts = [introduction]
    for header, *rows in tables:
        lines = [header, ["---"] * len(header), *rows]
        parts.append("\n".join(f"| {' | '.join(line)} |" for line in lines))
    return "\n\n".join(parts) + "\n"
