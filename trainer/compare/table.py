"""Compute means and standard deviations over the seeds for every recipe of a comparison."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from statistics import fmean, stdev
from typing import Any

from sklearn.metrics import adjusted_rand_score

from model.metrics import metric_for
from model.tasks.spec import TaskSpec
from trainer.json_file import to_number
from trainer.scoring.summary import relative_change, summarise

_REFERENCES = ("single_task", "multitask")  # the first one with a finished run


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
    """The results of a recipe's finished cells.

    Attributes:
        recipe: Name of the recipe.
        done: Number of finished cells.
        failed: Number of cells that failed.
        total_error: 100 times the sum of the error rates of the tasks that have one; no summary
            of other tasks.
        train_loss: Mean loss at the end of training.
        gain: Mean over the tasks of the change against the reference, see `CHANGE`; None without a
            reference.
        seconds: Wall time of the processes, a search included.
        parameters: Number of parameters of the model with one head per task.
        groups: Number of branches of that model.
        agreement: Mean adjusted Rand index of the groupings of two seeds; None for one seed.
        tasks: Primary metric of each task.
        gains: Change of each task against the reference, in percent.
    """

    recipe: str
    done: int
    failed: int
    total_error: Spread | None
    train_loss: Spread | None
    gain: Spread | None
    seconds: Spread | None
    parameters: Spread | None
    groups: Spread | None
    agreement: float | None
    tasks: dict[str, Spread]
    gains: dict[str, Spread]


def choose_reference(records: Sequence[Mapping[str, Any]], wanted: str | None = None) -> str | None:
    """Return the recipe that the others are compared with.

    Args:
        records: Records of the cells.
        wanted: The recipe that the user asks for. Else it is `single_task`, `multitask` or the
            first recipe, whichever has a finished run.

    Returns:
        Its name; None if it has no finished run, or if no other recipe has one.
    """
    finished = list(dict.fromkeys(r["recipe"] for r in records if r["status"] == "done"))
    if len(finished) < 2:
        return None
    candidates = (*_REFERENCES, *finished) if wanted is None else (wanted,)
    return next((recipe for recipe in candidates if recipe in finished), None)


def tabulate(
    records: Sequence[Mapping[str, Any]], reference: str | None = None
) -> list[RecipeResult]:
    """Summarise the records of the cells by recipe, in the order of the recipes' first records.

    Args:
        records: Records of the cells.
        reference: From `choose_reference`. Changes are relative to the mean over its seeds; a task
            whose mean is zero or missing has none.
    """
    records = [_with_numbers(record) for record in records]
    recipes = list(dict.fromkeys(record["recipe"] for record in records))
    done = {
        recipe: [r for r in records if r["recipe"] == recipe and r["status"] == "done"]
        for recipe in recipes
    }
    metrics = _mean_metrics([] if reference is None else done[reference])
    return [
        _of_recipe(
            recipe,
            done[recipe],
            sum(r["recipe"] == recipe and r["status"] == "failed" for r in records),
            metrics,
        )
        for recipe in recipes
    ]


def _with_numbers(record: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return a record with NaN for null, as which JSON holds losses and metrics that are NaN."""
    if record["status"] != "done":
        return record
    metrics = {
        task: {name: to_number(value) for name, value in values.items()}
        for task, values in record["metrics"].items()
    }
    return {**record, "metrics": metrics, "train_loss": to_number(record["train_loss"])}


def specs_of(records: Sequence[Mapping[str, Any]]) -> list[TaskSpec]:
    """Return the tasks of the finished cells; empty if no cell is finished."""
    done = [record for record in records if record["status"] == "done"]
    return [TaskSpec.from_dict(task) for task in done[0]["tasks"]] if done else []


def _mean_metrics(cells: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, float]]:
    """Return the mean primary metric of each task that has one in a cell."""
    reference: dict[str, dict[str, float]] = {}
    for spec in specs_of(cells):
        primary = metric_for(spec).primary
        values = [cell["metrics"].get(spec.name, {}).get(primary) for cell in cells]
        spread = Spread.of(values)
        if spread is not None:
            reference[spec.name] = {primary: spread.mean}
    return reference


def _of_recipe(
    recipe: str,
    cells: Sequence[Mapping[str, Any]],
    failed: int,
    reference: Mapping[str, Mapping[str, float]],
) -> RecipeResult:
    specs = specs_of(cells)
    totals = [summarise(specs, cell["metrics"]).total_error for cell in cells]
    changes = [relative_change(specs, cell["metrics"], reference) for cell in cells]
    tasks: dict[str, Spread] = {}
    gains: dict[str, Spread] = {}
    for spec in specs:
        primary = metric_for(spec).primary
        metric = Spread.of([c["metrics"].get(spec.name, {}).get(primary) for c in cells])
        gain = Spread.of([change.by_task.get(spec.name) for change in changes])
        if metric is not None:
            tasks[spec.name] = metric
        if gain is not None:
            gains[spec.name] = gain
    return RecipeResult(
        recipe=recipe,
        done=len(cells),
        failed=failed,
        total_error=Spread.of(totals),
        train_loss=Spread.of([cell["train_loss"] for cell in cells]),
        gain=Spread.of([change.mean for change in changes]),
        seconds=Spread.of([cell["seconds"] for cell in cells]),
        parameters=Spread.of([cell["parameters"] for cell in cells]),
        groups=Spread.of([len(cell["groups"]) for cell in cells]),
        agreement=_agreement(cells),
        tasks=tasks,
        gains=gains,
    )


def _agreement(cells: Sequence[Mapping[str, Any]]) -> float | None:
    """Return the mean adjusted Rand index over the pairs of cells."""
    labels = []
    for cell in cells:
        group_of = {name: number for number, names in enumerate(cell["groups"]) for name in names}
        labels.append([group_of[task["name"]] for task in cell["tasks"]])
    indices = [adjusted_rand_score(a, b) for a, b in combinations(labels, 2)]
    return fmean(indices) if indices else None
