"""Examines the labels of shards: statistics, a verdict for every task and a contact sheet."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from data_pipelines.doctor.checks import Finding, Level, data_findings, task_findings, worst
from data_pipelines.doctor.statistics import DataStatistics, LabelStatistics
from data_pipelines.errors import DataError
from data_pipelines.reading.collate import Batch, Collate
from data_pipelines.reading.dataset import ShardDataset
from data_pipelines.shards.manifest import Manifest
from data_pipelines.shards.sources import Location
from data_pipelines.transforms import Geometry
from model.tasks.spec import TaskSpec
from trainer.config.tasks import TasksSection
from trainer.doctor.contact_sheet import draw_sheet
from trainer.doctor.rules import rule_of
from trainer.tasks import label_requests, resolve_tasks

SIZE = (192, 192)  # labels are looked at through this many pixels, taken without mixing
_SHEET_ROWS = 8


@dataclass(frozen=True)
class TaskReport:
    """One task: what its labels look like and what is wrong with them.

    Attributes:
        labelled: Samples of the split that have the label, by the manifest.
        invalid: Fraction of the values read that are invalid or ignored.
        low, high, mean, deviation: Of the valid values in natural units, first channel to last;
            empty for classes.
        shares: Fraction of each class among the valid values; empty for regressions.
    """

    task: str
    kind: str
    unit: str
    labelled: int
    invalid: float
    low: tuple[float, ...]
    high: tuple[float, ...]
    mean: tuple[float, ...]
    deviation: tuple[float, ...]
    shares: dict[str, float]
    findings: tuple[Finding, ...]

    @property
    def level(self) -> Level:
        """The gravest level among the findings."""
        return worst(self.findings)


@dataclass(frozen=True)
class Report:
    """The result of `examine` for a split."""

    split: str
    samples: int
    read: int
    tasks: tuple[TaskReport, ...]
    findings: tuple[Finding, ...]

    @property
    def level(self) -> Level:
        """The gravest level of all."""
        return worst([*self.findings, *(f for task in self.tasks for f in task.findings)])

    def to_json(self) -> dict[str, Any]:
        """The report as JSON can hold it."""
        tasks = [{**asdict(task), "level": task.level} for task in self.tasks]
        return {**asdict(self), "tasks": tasks, "level": self.level}


def examine(location: Location, samples: int, split: str, sheet: Path | None = None) -> Report:
    """Read samples, spread evenly over a split, and judge every label of the manifest.

    Args:
        location: Folder or URL of the shards.
        samples: How many to read at most.
        split: Name of the split.
        sheet: Where to write a picture of some samples and their labels.

    Raises:
        DataError: The manifest cannot be used, or no sample could be read.
        UserError: A field of the manifest is not a task's.
    """
    manifest = Manifest.load(location)
    total, labelled = manifest.split(split).num_samples, manifest.split(split).labelled
    tasks = resolve_tasks(TasksSection(), manifest)
    present = tuple(task for task in tasks if labelled.get(task.field))
    dataset = ShardDataset(
        location, manifest, split, label_requests(present), Geometry(SIZE), on_error="replace"
    )
    statistics = DataStatistics([rule_of(task) for task in present])
    numbers = np.arange(min(samples, total)) * total // min(samples, total)
    shown, damage = _read(dataset, numbers.tolist(), statistics)
    if not shown:
        raise DataError(f"{location}: none of {len(numbers)} samples could be read: {damage[0]}")
    if sheet is not None:
        draw_sheet(shown, present, sheet)
    seen_all = statistics.num_samples == total
    reports = [
        _task_report(
            task, statistics.labels.get(task.name), labelled.get(task.field, 0), all_seen=seen_all
        )
        for task in tasks
    ]
    findings = [*_damage(damage, len(numbers)), *data_findings(statistics)]
    return Report(split, total, statistics.num_samples, tuple(reports), tuple(findings))


def _read(
    dataset: ShardDataset, numbers: list[int], statistics: DataStatistics
) -> tuple[list[Batch], list[str]]:
    """Take in the samples; a few of them for the sheet, and what was wrong with the others."""
    collate, every = Collate(dataset.labels), -(-len(numbers) // _SHEET_ROWS)
    shown: list[Batch] = []
    damage = []
    for place, number in enumerate(numbers):
        sample = dataset[0, number]
        if sample.damage:
            damage.append(sample.damage)
            continue
        batch = collate([sample])  # alone, since samples that differ in dtype cannot be stacked
        statistics.update(batch)
        if place // every >= len(shown):
            shown.append(batch)
    return shown, damage


def _damage(damage: list[str], tried: int) -> list[Finding]:
    if not damage:
        return []
    return [Finding("error", f"{len(damage)} of {tried} samples are damaged, first: {damage[0]}")]


def _task_report(
    task: TaskSpec, seen: LabelStatistics | None, labelled: int, *, all_seen: bool
) -> TaskReport:
    findings = (
        [Finding("warning", "no label in this split: name the tasks to train without it")]
        if seen is None
        else task_findings(seen, all_seen=all_seen)
    )
    numbers: dict[str, tuple[float, ...]] = dict.fromkeys(("low", "high", "mean", "deviation"), ())
    shares: dict[str, float] = {}
    if seen is not None and seen.valid:
        if seen.rule.has_classes:
            shares = {
                name: seen.counts[index] / seen.counted
                for index, name in enumerate(seen.rule.classes)
                if seen.counts[index]
            }
        else:
            numbers = _natural_numbers(task, seen)
    return TaskReport(
        task.name,
        task.kind,
        task.unit,
        labelled,
        1 - seen.valid / seen.pixels if seen is not None and seen.pixels else 0.0,
        shares=shares,
        findings=tuple(findings),
        **numbers,
    )


def _natural_numbers(task: TaskSpec, seen: LabelStatistics) -> dict[str, tuple[float, ...]]:
    scale, offset = task.unit_scale, task.unit_offset
    ends = np.stack([seen.low, seen.high]) * scale + offset
    return {
        "low": tuple(ends.min(axis=0).tolist()),
        "high": tuple(ends.max(axis=0).tolist()),
        "mean": tuple((seen.mean * scale + offset).tolist()),
        "deviation": tuple((seen.deviation * abs(scale)).tolist()),
    }
