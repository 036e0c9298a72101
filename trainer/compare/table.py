"""Summarise the cells of a comparison: one row for every recipe, compared with its reference."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from statistics import fmean, stdev
from typing import Any

from sklearn.metrics import adjusted_rand_score

from model.metrics import metric_for
from model.tasks.spec import TaskSpec
from trainer.compare.paired import PairedChange, paired_change
from trainer.json_file import to_number
from trainer.scoring.summary import summarise

ONE_BRANCH = "multitask"  # the recipe with one branch for all tasks
_REFERENCES = ("random", "single_task", ONE_BRANCH)  # the first one with a finished run

Record = Mapping[str, Any]  # of a cell


@dataclass(frozen=True)
class Spread:
    """Mean and standard deviation of a number over the seeds.

    Attributes:
        mean: Mean of the values.
        std: Sample standard deviation; None for a single seed.
        values: Value of each seed.
    """

    mean: float
    std: float | None
    values: tuple[float, ...]

    @classmethod
    def of(cls, values: Sequence[float | None]) -> Spread | None:
        """Return the spread of the values that are not None, or None without such values."""
        known = tuple(value for value in values if value is not None)
        if not known:
            return None
        return cls(fmean(known), stdev(known) if len(known) > 1 else None, known)


@dataclass(frozen=True)
class RecipeResult:
    """A row of the comparison: the results of the finished cells of one recipe.

    Attributes:
        recipe: Label of the row: the recipe, with its number of branches or its file of groups.
        name: Name of the recipe.
        branches: Number of branches at the beginning, where the comparison varies it.
        done: Number of finished cells.
        failed: Number of cells that failed.
        total_error: 100 times the sum of the error rates of the tasks that have one; no summary
            of other tasks.
        train_loss: Mean loss at the end of training.
        gain: Change against the row's reference, paired by seed; None without a reference.
        one_branch: Change against one branch for all tasks, if that takes part.
        fewer: Change against the same recipe with the next smaller number of branches; the
            smallest of them against one branch.
        seconds: Wall time of the processes, a search included.
        times_seconds: Seconds relative to those of the reference.
        parameters: Number of parameters of the model with one head per task.
        times_parameters: Parameters relative to those of the reference.
        groups: Number of branches of that model.
        agreement: Mean adjusted Rand index of the groupings of two seeds; None for one seed.
        tasks: Primary metric of each task.
        gains: Change of each task against the reference, in percent.
    """

    recipe: str
    name: str
    branches: int | None
    done: int
    failed: int
    total_error: Spread | None
    train_loss: Spread | None
    gain: PairedChange | None
    one_branch: PairedChange | None
    fewer: PairedChange | None
    seconds: Spread | None
    times_seconds: float | None
    parameters: Spread | None
    times_parameters: float | None
    groups: Spread | None
    agreement: float | None
    tasks: dict[str, Spread]
    gains: dict[str, Spread]

    @property
    def is_reference(self) -> bool:
        """Whether the row is its own reference."""
        return self.gain is not None and self.gain.reference == self.recipe


def label_of(record: Record) -> str:
    """Return the label of the row of a cell; cells of earlier versions have only a recipe."""
    return str(record.get("label", record["recipe"]))


def merge_parts(records: Sequence[Record]) -> list[Record]:
    """Return the records, those of several runs that train some tasks each as one.

    The record of such a run has `part`: its number and the number of these runs.
    """
    merged: dict[tuple[str, int], list[Record]] = {}
    for record in records:
        merged.setdefault((label_of(record), record["seed"]), []).append(record)
    return [_as_one(parts) if "part" in parts[0] else parts[0] for parts in merged.values()]


def _as_one(parts: Sequence[Record]) -> Record:
    first = {key: value for key, value in parts[0].items() if key != "part"}
    statuses = [part["status"] for part in parts]
    first["seconds"] = sum(part["seconds"] for part in parts)
    if set(statuses) != {"done"}:
        return first | {"status": next(status for status in statuses if status != "done")}
    return first | {
        "tasks": [task for part in parts for task in part["tasks"]],
        "metrics": {task: values for part in parts for task, values in part["metrics"].items()},
        "train_loss": sum(to_number(part["train_loss"]) for part in parts),
        "groups": [group for part in parts for group in part["groups"]],
        "parameters": sum(part["parameters"] for part in parts),
    }


def choose_reference(records: Sequence[Record], wanted: str | None = None) -> str | None:
    """Return what the rows are compared with: the label of a row, or a recipe.

    Args:
        records: Records of the cells.
        wanted: What the user asks for. Else it is the first with a finished run of `random`,
            `single_task`, `multitask` and the first row.

    Returns:
        Its label or recipe; None if it has no finished run, or if no other row has one.
    """
    finished = {label_of(r): str(r["recipe"]) for r in records if r["status"] == "done"}
    if len(finished) < 2:
        return None
    if wanted is not None:
        return wanted if wanted in (*finished, *finished.values()) else None
    recipes = set(finished.values())
    others = (name for name in _REFERENCES if name in recipes and recipes != {name})
    return next(others, next(iter(finished)))


def tabulate(records: Sequence[Record], reference: str | None = None) -> list[RecipeResult]:
    """Summarise the records of the cells by row, in the order of the rows' first records.

    Args:
        records: Records of the cells, see `merge_parts`.
        reference: From `choose_reference`. If it is a recipe with several rows, each row is
            compared with that of its own number of branches, else of the nearest one.
    """
    rows = _rows(records)
    references = _references(rows, reference)
    one = next((row for row in rows if row.name == ONE_BRANCH and row.done), None)
    return [_result(row, references.get(row.label), one, rows) for row in rows]


@dataclass(frozen=True)
class _Row:
    """The cells of a row: those that are done, and the number of failed ones."""

    label: str
    name: str
    branches: int | None
    done: list[Record]
    failed: int

    @property
    def size(self) -> float:
        """The number of branches that the row is matched by."""
        return self.branches or fmean(len(cell["groups"]) for cell in self.done)

    def mean(self, key: str) -> float:
        """Return the mean of a number over the finished cells."""
        return fmean(cell[key] for cell in self.done)


def _rows(records: Sequence[Record]) -> list[_Row]:
    by_label: dict[str, list[Record]] = {}
    for record in records:
        by_label.setdefault(label_of(record), []).append(_with_numbers(record))
    return [
        _Row(
            label,
            str(cells[0]["recipe"]),
            cells[0].get("branches"),
            [cell for cell in cells if cell["status"] == "done"],
            sum(cell["status"] == "failed" for cell in cells),
        )
        for label, cells in by_label.items()
    ]


def _with_numbers(record: Record) -> Record:
    """Return a record with NaN for null, as which JSON holds losses and metrics that are NaN."""
    if record["status"] != "done":
        return record
    metrics = {
        task: {name: to_number(value) for name, value in values.items()}
        for task, values in record["metrics"].items()
    }
    return {**record, "metrics": metrics, "train_loss": to_number(record["train_loss"])}


def _references(rows: Sequence[_Row], reference: str | None) -> dict[str, _Row]:
    """Return the reference of every finished row."""
    done = [row for row in rows if row.done]
    candidates = [row for row in done if reference in (row.label, row.name)]

    def nearest(row: _Row) -> _Row:
        distances = {c.label: abs(math.log(c.size / row.size)) for c in candidates}
        return min(candidates, key=lambda c: (c is not row, distances[c.label], -c.size))

    return {row.label: nearest(row) for row in done} if candidates else {}


def specs_of(records: Sequence[Record]) -> list[TaskSpec]:
    """Return the tasks of the finished cells; empty if no cell is finished."""
    done = [record for record in records if record["status"] == "done"]
    return [TaskSpec.from_dict(task) for task in done[0]["tasks"]] if done else []


def compare_rows(
    specs: Sequence[TaskSpec], row: Sequence[Record], other: Sequence[Record], label: str
) -> PairedChange:
    """Return the change of a row's finished cells against those of another.

    Args:
        specs: The tasks.
        row: Cells of the row.
        other: Cells of the reference.
        label: Label of the reference.
    """
    runs, references = ({cell["seed"]: cell["metrics"] for cell in each} for each in (row, other))
    return paired_change(specs, runs, references, label)


def _result(
    row: _Row, reference: _Row | None, one: _Row | None, rows: Sequence[_Row]
) -> RecipeResult:
    cells = row.done
    specs = specs_of([cell for each in rows for cell in each.done])
    others = (reference, one if row is not one else None, _fewer(row, one, rows))
    gain, one_branch, fewer = (
        compare_rows(specs, cells, other.done, other.label) if other and cells else None
        for other in others
    )
    tasks = {}
    for spec in specs:
        primary = metric_for(spec).primary
        metric = Spread.of([c["metrics"].get(spec.name, {}).get(primary) for c in cells])
        if metric is not None:
            tasks[spec.name] = metric
    gains = {} if gain is None else {task: Spread.of(v) for task, v in gain.by_task.items()}
    return RecipeResult(
        recipe=row.label,
        name=row.name,
        branches=row.branches,
        done=len(cells),
        failed=row.failed,
        total_error=Spread.of([summarise(specs, cell["metrics"]).total_error for cell in cells]),
        train_loss=Spread.of([cell["train_loss"] for cell in cells]),
        gain=gain,
        one_branch=one_branch,
        fewer=fewer,
        seconds=Spread.of([cell["seconds"] for cell in cells]),
        times_seconds=_ratio(row, reference, "seconds"),
        parameters=Spread.of([cell["parameters"] for cell in cells]),
        times_parameters=_ratio(row, reference, "parameters"),
        groups=Spread.of([len(cell["groups"]) for cell in cells]),
        agreement=_agreement(cells),
        tasks=tasks,
        gains={task: spread for task, spread in gains.items() if spread is not None},
    )


def _fewer(row: _Row, one: _Row | None, rows: Sequence[_Row]) -> _Row | None:
    """Return the finished row of the same recipe with the next smaller number of branches."""
    if row.branches is None:
        return None
    same = [r for r in rows if r.name == row.name and r.done and (r.branches or 0) < row.branches]
    return max(same, key=lambda r: r.branches or 0, default=one)


def _ratio(row: _Row, reference: _Row | None, key: str) -> float | None:
    if reference is None or not reference.mean(key):
        return None
    return row.mean(key) / reference.mean(key)


def _agreement(cells: Sequence[Record]) -> float | None:
    """Return the mean adjusted Rand index over the pairs of cells."""
    labels = []
    for cell in cells:
        group_of = {name: number for number, names in enumerate(cell["groups"]) for name in names}
        labels.append([group_of[task["name"]] for task in cell["tasks"]])
    indices = [adjusted_rand_score(a, b) for a, b in combinations(labels, 2)]
    return fmean(indices) if indices else None
