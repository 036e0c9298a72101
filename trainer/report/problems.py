"""What a reader of a page should know about the data: damage, missing labels, slow reading."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from statistics import median
from typing import Any

from model.metrics import metric_for
from model.tasks.spec import TaskSpec
from trainer.report.data_facts import DataFacts
from trainer.report.records import Record, of_kind

_NAMED = 10  # tasks in one message
_FEW_LABELS = 0.1  # fraction of the samples below which the labels of a task are few
_WAITING = 0.2  # fraction of a step's time from which waiting for data is worth a message

Problem = dict[str, str]  # `level`: warning or note; `text`


def list_problems(
    records: Sequence[Record],
    timing: Sequence[Record],
    tasks: Sequence[TaskSpec],
    metrics: Mapping[str, Mapping[str, float]],
    facts: DataFacts,
) -> list[Problem]:
    """Return the problems, the worst first.

    Args:
        records: Of `metrics.jsonl`.
        timing: Of `timing.jsonl`.
        tasks: Of the run.
        metrics: Of the last evaluation.
        facts: What was read of the data.
    """
    found = [
        *_damage(records),
        *_labels(records, tasks, metrics, facts),
        *_not_better(tasks, metrics, facts),
        *_conversion(facts),
        *_waiting(timing),
    ]
    return sorted(found, key=lambda problem: problem["level"] != "warning")


def _damage(records: Sequence[Record]) -> Iterable[Problem]:
    for kind, split in (("train", "training"), ("eval", "evaluation")):
        counts = [record.get("replaced", 0) for record in records if record["kind"] == kind]
        if counts and counts[-1]:
            yield _warning(f"Damaged samples that were replaced in {split}: {counts[-1]}.")
    skipped = [record for record in records if record["kind"] == "skip"]
    if skipped:
        steps = ", ".join(str(record["step"]) for record in skipped[:_NAMED])
        yield _warning(
            f"Steps left out because of a loss that is not finite: {len(skipped)} ({steps})."
        )


def _labels(
    records: Sequence[Record],
    tasks: Sequence[TaskSpec],
    metrics: Mapping[str, Mapping[str, float]],
    facts: DataFacts,
) -> Iterable[Problem]:
    trained = {
        name
        for record in records
        if record["kind"] == "train"
        for name, loss in record["losses"].items()
        if loss is not None
    }
    without = [task.name for task in tasks if task.name not in trained]
    if without:
        yield _warning(f"No loss was logged for {_listed(without)}.")
    unmeasured = [task.name for task in tasks if metrics and task.name not in metrics]
    if unmeasured:
        yield _warning(f"No label in the evaluation split for {_listed(unmeasured)}.")
    for split, counts in facts.labelled.items():
        few = [
            f"{task.name} ({counts['labels'].get(task.field, 0)} of {counts['samples']})"
            for task in tasks
            if counts["labels"].get(task.field, 0) < _FEW_LABELS * counts["samples"]
        ]
        if few:
            yield _note(f"Few labels in the split {split}: {_listed(few)}.")


def _not_better(
    tasks: Sequence[TaskSpec], metrics: Mapping[str, Mapping[str, float]], facts: DataFacts
) -> Iterable[Problem]:
    worse, known = [], 0
    for task in tasks:
        metric = metric_for(task)
        value = metrics.get(task.name, {}).get(metric.primary, math.nan)
        constant = facts.constants.get(task.name, {}).get(metric.primary, math.nan)
        if math.isnan(constant) or metrics.get(task.name) is None:
            continue
        known += 1
        if not (value > constant if metric.higher_is_better else value < constant):
            worse.append(task.name)
    if worse:
        yield _warning(
            f"{len(worse)} of {known} tasks are not better than the best constant prediction: "
            f"{_listed(worse)}."
        )


def _conversion(facts: DataFacts) -> Iterable[Problem]:
    for reason, count in facts.skipped.items():
        yield _note(f"Samples that the conversion left out: {count} ({reason}).")
    for name, reasons in list(facts.lost.items())[:_NAMED]:
        listed = ", ".join(f"{reason} ({count})" for reason, count in reasons.items())
        yield _note(f"The conversion left out labels of {name}: {listed}.")
    if len(facts.lost) > _NAMED:
        yield _note(f"The conversion left out labels of {len(facts.lost) - _NAMED} more fields.")


def _waiting(timing: Sequence[Record]) -> Iterable[Problem]:
    steps: list[dict[str, Any]] = of_kind(list(timing), "steps")
    shares = [r["data_seconds"]["max"] / r["step_seconds"] for r in steps if r["step_seconds"]]
    if shares and median(shares) > _WAITING:
        yield _note(
            f"Half of the steps spent more than {100 * median(shares):.0f} % of their time waiting "
            "for data; more data.workers may help."
        )


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return ", ".join(names[:_NAMED]) + more


def _warning(text: str) -> Problem:
    return {"level": "warning", "text": text}


def _note(text: str) -> Problem:
    return {"level": "note", "text": text}
