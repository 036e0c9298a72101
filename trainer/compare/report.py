"""Write a comparison to the terminal, to Markdown and to JSON: verdict, tables and plot."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from dmtg.files import atomic_write
from dmtg.suggestions import listed
from model.metrics import metric_for
from model.tasks.spec import TaskSpec
from trainer.compare.paired import LEVEL, PairedChange
from trainer.compare.plot import draw_comparison
from trainer.compare.table import (
    RecipeResult,
    Spread,
    choose_reference,
    merge_parts,
    specs_of,
    tabulate,
)
from trainer.compare.verdict import closing, sentences, signed, times
from trainer.json_file import write_json
from trainer.scoring.summary import CHANGE
from trainer.tables import print_table

Rows = list[list[str]]  # the first row is the header

_NOTES = (
    "Mean ± sample standard deviation over the seeds. Seconds are those of the whole process, a "
    "search included; parameters are those of the pruned model; agreement is the mean adjusted "
    "Rand index of two seeds' groupings."
)


@dataclass(frozen=True)
class Comparison:
    """A comparison as it is shown.

    Attributes:
        results: One for each row.
        sentences: What was found for each row.
        verdict: On all rows; empty if there is nothing to compare.
        tables: Of the rows and of the tasks.
        notes: The sentences that define the columns of the tables.
    """

    results: list[RecipeResult]
    sentences: list[str]
    verdict: str
    tables: list[Rows]
    notes: str


def notes(results: Sequence[RecipeResult], num_tasks: int, reference: str | None) -> str:
    """Return the sentences that define the columns of the tables."""
    changes = [r.gain for r in results if r.gain is not None and not r.is_reference]
    if reference is None or not changes:
        return _NOTES
    compared = max(len(change.by_task) for change in changes)
    text = (
        f"{_NOTES} The change is the mean over {compared} of {num_tasks} tasks and over the seeds, "
        f"of runs with the same seed, against {_described(results, reference)}, in brackets its "
        f"{100 * LEVEL:.0f} % interval over seeds and tasks, which one seed does not have and few "
        f"seeds make wide; it is not corrected for the number of recipes. {CHANGE} The reference "
        "in the denominator is the mean over the seeds. A task whose reference is 0 or missing has "
        "no change."
    )
    left_out = list(dict.fromkeys(task for change in changes for task in change.left_out))
    return f"{text} Without a change: {listed(left_out)}." if left_out else text


def _described(results: Sequence[RecipeResult], reference: str) -> str:
    """Return the name of the reference in the title of a column."""
    labels = {result.gain.reference for result in results if result.gain is not None}
    return labels.pop() if len(labels) == 1 else f"{reference} with the same K"


def save_comparison(
    records: Sequence[Mapping[str, Any]],
    out: Path,
    about: str,
    reference: str | None = None,
    remarks: Sequence[str] = (),
) -> Comparison:
    """Write `compare.json`, `compare.md` and, if any cell is finished, `compare.png`.

    Args:
        records: Records of the cells.
        out: Folder of the comparison.
        about: Sentence that describes the comparison.
        reference: What to compare with, see `choose_reference`.
        remarks: Sentences about the cells, which are added to the notes.
    """
    merged = merge_parts(records)
    reference = choose_reference(merged, reference)
    results, specs = tabulate(merged, reference), specs_of(merged)
    tables = [recipe_rows(results, reference)]
    defined = " ".join((notes(results, len(specs), reference), *remarks))
    picture = ""
    if specs:
        tables.append(task_rows(results, specs))
        draw_comparison(results, out / "compare.png")
        picture = "\n\n![comparison](compare.png)"
    comparison = Comparison(results, sentences(results), closing(results), tables, defined)
    write_json(
        out / "compare.json",
        {
            "about": about,
            "reference": reference,
            "level": LEVEL,
            "verdict": comparison.verdict,
            "sentences": comparison.sentences,
            "recipes": [asdict(r) for r in results],
            "cells": list(records),
        },
        indent=1,
    )
    found = [f"**{comparison.verdict}**"] if comparison.verdict else []
    found += ["\n".join(f"- {line}" for line in comparison.sentences)] if found else []
    text = "\n\n".join(["# Comparison of grouping recipes", *found, f"{about} {defined}{picture}"])
    with atomic_write(out / "compare.md") as file:
        file.write(to_markdown(tables, text))
    return comparison


def shown(spread: Spread | None, digits: int = 4) -> str:
    """Return mean and standard deviation as text, the mean to `digits` digits; `-` for None."""
    if spread is None:
        return "-"
    mean = f"{spread.mean:.{digits}g}"
    return mean if spread.std is None else f"{mean} ± {spread.std:.2g}"


def recipe_rows(results: Sequence[RecipeResult], reference: str | None = None) -> Rows:
    """Return one row for every recipe, without columns that have no value."""
    title = "" if reference is None else _described(results, reference)
    columns = {
        "recipe": [result.recipe for result in results],
        "seeds": [_seeds(result) for result in results],
        f"change against {title}, %": [
            "reference" if result.is_reference else _change(result.gain) for result in results
        ],
        "change against one branch, %": [
            "-" if _is_shown_already(result) else _change(result.one_branch) for result in results
        ],
        "agreement (ARI)": [
            "-" if result.agreement is None else f"{result.agreement:.2f}" for result in results
        ],
        "groups": [_count(result.groups) for result in results],
        "seconds": [shown(result.seconds, 3) for result in results],
        "times the seconds": [_times(result.times_seconds) for result in results],
        "parameters": [_count(result.parameters) for result in results],
        "times the parameters": [_times(result.times_parameters) for result in results],
        "training loss": [shown(result.train_loss) for result in results],
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


def _is_shown_already(result: RecipeResult) -> bool:
    """Return whether one branch is the reference of the row, too."""
    gain, one = result.gain, result.one_branch
    return gain is not None and one is not None and gain.reference == one.reference


def _change(change: PairedChange | None) -> str:
    if change is None or change.mean is None:
        return "-"
    mean = signed(change.mean)
    if change.low is None or change.high is None:
        return mean
    return f"{mean} [{signed(change.low)}, {signed(change.high)}]"


def _times(ratio: float | None) -> str:
    return "-" if ratio is None else times(ratio)


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
