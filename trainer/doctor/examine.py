"""Examine the labels of shards: statistics, a level for every task and a contact sheet."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from data_pipelines.doctor.checks import Finding, Level, data_findings, task_findings, worst
from data_pipelines.doctor.statistics import DataStatistics, LabelStatistics
from data_pipelines.errors import DataError
from data_pipelines.reading.collate import Batch, Collate
from data_pipelines.reading.dataset import ShardDataset
from data_pipelines.reading.order import spread_samples
from data_pipelines.shards.manifest import Manifest
from data_pipelines.shards.sources import Location
from data_pipelines.transforms import Geometry
from model.tasks.spec import TaskSpec
from trainer.config.tasks import TasksSection
from trainer.doctor.contact_sheet import draw_sheet
from trainer.doctor.rules import rule_of
from trainer.tasks import label_requests, resolve_tasks

SIZE = (192, 192)  # labels are resized to this many pixels, without interpolation
_SHEET_ROWS = 8


@dataclass(frozen=True)
class TaskReport:
    """Statistics of a task's labels and the findings about them.

    Attributes:
        task: Name of the task.
        kind: Kind of the task.
        unit: Unit of the statistics.
        labelled: Number of samples of the split that have the label, according to the manifest.
        invalid: Fraction of the values read that are invalid or ignored.
        low: Minimum of the valid values of each channel in natural units; empty for classes.
        high: Their maximum.
        mean: Their mean.
        deviation: Their standard deviation.
        shares: Fraction of each class among the valid values; empty for regressions.
        findings: Results of the checks.
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
        """The most severe level of the findings."""
        return worst(self.findings)


@dataclass(frozen=True)
class Report:
    """The result of `examine`.

    Attributes:
        split: Name of the split.
        samples: Number of samples of the split.
        read: Number of samples that were read.
        tasks: Reports of the tasks.
        findings: Findings about the data as a whole.
    """

    split: str
    samples: int
    read: int
    tasks: tuple[TaskReport, ...]
    findings: tuple[Finding, ...]

    @property
    def level(self) -> Level:
        """The most severe level of the data and of all tasks."""
        return worst([*self.findings, *(f for task in self.tasks for f in task.findings)])

    def to_json(self) -> dict[str, Any]:
        """Return the report as JSON values."""
        tasks = [{**asdict(task), "level": task.level} for task in self.tasks]
        return {**asdict(self), "tasks": tasks, "level": self.level}


def examine(location: Location, samples: int, split: str, sheet: Path | None = None) -> Report:
    """Read evenly spaced samples of a split, see `spread_samples`, and check every label.

    Args:
        location: Folder or URL of the shards.
        samples: Maximum number of samples to read.
        split: Name of the split.
        sheet: File for a contact sheet of some samples; None writes none.

    Raises:
        DataError: The manifest cannot be used, or no sample could be read.
        UserError: A field of the manifest cannot be the label of a task.
    """
    manifest = Manifest.load(location)
    total, labelled = manifest.split(split).num_samples, manifest.split(split).labelled
    counts = manifest.split(split).class_counts
    tasks = resolve_tasks(TasksSection(), manifest)
    present = tuple(task for task in tasks if labelled.get(task.field))
    # Ids without a class are counted, not refused: the task of a run can name one of them.
    requests = [replace(request, num_classes=None) for request in label_requests(present)]
    dataset = ShardDataset(location, manifest, split, requests, Geometry(SIZE), on_error="replace")
    statistics = DataStatistics([rule_of(task) for task in present])
    numbers = spread_samples(manifest.split(split), samples)
    shown, damage = _read(dataset, numbers, statistics)
    if not shown:
        raise DataError(f"{location}: none of {len(numbers)} samples could be read: {damage[0]}")
    if sheet is not None:
        draw_sheet(shown, present, sheet)
    all_seen = statistics.num_samples == total
    reports = [
        _task_report(
            task,
            statistics.labels.get(task.name),
            labelled.get(task.field, 0),
            all_seen=all_seen,
            more_classes=sum(map(bool, counts.get(task.field, ()))) > 1,
        )
        for task in tasks
    ]
    findings = [*_damage(damage, len(numbers)), *data_findings(statistics)]
    return Report(split, total, statistics.num_samples, tuple(reports), tuple(findings))


def _read(
    dataset: ShardDataset, numbers: list[int], statistics: DataStatistics
) -> tuple[list[Batch], list[str]]:
    """Update the statistics; return samples for the sheet and messages of damaged samples."""
    collate, every = Collate(dataset.labels), -(-len(numbers) // _SHEET_ROWS)
    shown: list[Batch] = []
    damage = []
    for position, number in enumerate(numbers):
        sample = dataset[0, number]
        if sample.damage:
            damage.append(sample.damage)
            continue
        batch = collate([sample])  # one by one: samples of different dtypes cannot be stacked
        statistics.update(batch)
        if position // every >= len(shown):
            shown.append(batch)
    return shown, damage


def _damage(damage: list[str], num_samples: int) -> list[Finding]:
    if not damage:
        return []
    return [
        Finding("error", f"{len(damage)} of {num_samples} samples are damaged, first: {damage[0]}")
    ]


def _task_report(
    task: TaskSpec,
    seen: LabelStatistics | None,
    labelled: int,
    *,
    all_seen: bool,
    more_classes: bool,
) -> TaskReport:
    findings = (
        [Finding("warning", "no label in this split: name the tasks to train without it")]
        if seen is None
        else task_findings(seen, all_seen=all_seen, more_classes=more_classes)
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
