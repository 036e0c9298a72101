"""Checks of a dataset's statistics, each of which reports a defect in words."""
# Shapes: N tasks, S samples, C channels.

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Literal

import numpy as np

from data_pipelines.doctor.statistics import FEW_ULPS, DataStatistics, LabelStatistics

Level = Literal["ok", "note", "warning", "error"]
LEVELS: tuple[Level, ...] = ("ok", "note", "warning", "error")

MANY_LABELS = 512  # scalar labels after which a class that never occurred counts as absent
MANY_EMPTY = 0.05  # fraction of labels without a valid pixel
MANY_FLAT = 0.5  # fraction of pictures with a single value
NEARLY_CONSTANT, CONSTANT = 0.99, 0.9999  # fraction of the most frequent value
SCALED_DEVIATION = (1e-3, 1e2)  # usual learning rates do not fit targets outside this range
FEW_TO_COMPARE = 16  # scalar labels of two tasks that may be equal by chance
MAX_NAMED = 6


@dataclass(frozen=True)
class Finding:
    """A defect, or a note; an error would make training meaningless."""

    level: Level
    message: str


def worst(findings: Sequence[Finding]) -> Level:
    """Return the most severe level of the findings."""
    return max((finding.level for finding in findings), key=LEVELS.index, default="ok")


def task_findings(
    statistics: LabelStatistics, *, all_seen: bool, more_classes: bool = False
) -> list[Finding]:
    """Return the defects of one task's labels.

    Args:
        statistics: Statistics of the labels.
        all_seen: Whether every sample of the split was read, so that absence is proven.
        more_classes: Whether the manifest counts labels of more than one class in the split.
    """
    if statistics.present == 0:
        return [Finding("warning", "no label in the samples read")]
    if is_empty(statistics):
        unknown = f" ({_percent(_unknown(statistics))} unknown ids)" if statistics.unknown else ""
        return [Finding("error", f"every pixel of every label is invalid or ignored{unknown}")]
    findings = [*_coverage(statistics)]
    if statistics.rule.has_classes:
        findings += _class_findings(statistics, all_seen, more_classes)
    else:
        findings += _flatness(statistics)
        findings += _scaling(statistics)
    if worst(findings) != "error":
        findings += _mode(statistics)
    return findings


def is_flattened(statistics: LabelStatistics) -> bool:
    """Return whether the labels of a regression or a segmentation hold no information.

    They have one value in all samples, up to rounding, or one value in each picture.
    """
    seen = statistics.present - statistics.empty
    if statistics.rule.dense:
        every_picture = seen > 0 and statistics.flat == seen
        return every_picture and (not statistics.rule.has_classes or len(statistics.counts) == 1)
    return seen > 1 and not statistics.rule.has_classes and bool(statistics.flat_channels.all())


def is_empty(statistics: LabelStatistics) -> bool:
    """Return whether there are labels and every pixel of all of them is invalid or ignored."""
    return statistics.empty == statistics.present > 0


def data_findings(statistics: DataStatistics) -> list[Finding]:
    """Return the defects of the images, and the pairs of tasks with equal labels."""
    findings = []
    number, flat = statistics.num_samples, statistics.flat_images
    if flat:
        level: Level = "error" if flat == number else "warning"
        findings.append(Finding(level, f"{flat} of {number} images are of one colour"))
    findings += _copies(statistics)
    findings += [
        Finding("warning", f"{first} and {second} have equal labels in all {count} samples")
        for first, second, count in _equal_tasks(statistics)
    ]
    return findings


def _coverage(statistics: LabelStatistics) -> Iterator[Finding]:
    empty, present = statistics.empty, statistics.present
    if len(statistics.dtypes) > 1:
        yield Finding("error", f"stored in several types: {', '.join(sorted(statistics.dtypes))}")
    if empty / present > MANY_EMPTY:
        yield Finding("warning", f"{empty} of {present} labels have no valid pixel")
    if statistics.unknown:
        message = f"{_percent(_unknown(statistics))} of ids stand for no class"
        yield Finding("error", f"{message}: the task's `ignore_index` must name such an id")


def _unknown(statistics: LabelStatistics) -> float:
    return statistics.unknown / statistics.pixels


def _class_findings(
    statistics: LabelStatistics, all_seen: bool, more_classes: bool
) -> Iterator[Finding]:
    names = statistics.rule.classes
    seen = {int(value) for value in statistics.counts}
    if len(seen) == 1:
        name = names[next(iter(seen))]
        message = f"only class {name!r} in {statistics.present} labels"
        enough = all_seen or statistics.rule.dense or statistics.present >= MANY_LABELS
        if more_classes and not all_seen:
            yield Finding("warning", f"{message}, others in the rest of the split")
        else:
            yield Finding("error" if enough else "warning", message)
        return
    absent = [
        name
        for index, name in enumerate(names)
        if index not in seen and index != statistics.rule.ignore_index
    ]
    if absent:
        yield Finding("note", f"classes never seen: {_listed(absent)}")


def _flatness(statistics: LabelStatistics) -> Iterator[Finding]:
    flat = statistics.flat_channels
    seen, pictures = statistics.present - statistics.empty, statistics.flat
    low, high = statistics.low, statistics.high
    if flat.all():
        exact = bool((low == high).all())
        rounding = "" if exact else f", up to {FEW_ULPS} float32 roundings"
        alone = seen == 1 and not statistics.rule.dense
        value = f"one value ({low[0]:.6g}) in all {seen} labels{rounding}"
        yield Finding("warning" if alone else "error", f"flattened: {value}")
    elif statistics.rule.dense and pictures == seen:
        yield Finding("error", f"flattened: each of the {seen} pictures holds one value")
    else:
        if flat.any():
            numbers = _listed([str(number) for number in np.flatnonzero(flat)])
            yield Finding("warning", f"one value in all of channel {numbers}")
        if pictures / seen > MANY_FLAT:
            yield Finding("warning", f"{pictures} of {seen} pictures hold one value")


def _scaling(statistics: LabelStatistics) -> Iterator[Finding]:
    if statistics.flat_channels.any():
        return
    scaled = statistics.deviation / np.asarray(statistics.rule.scale)
    low, high = SCALED_DEVIATION
    if scaled.min() < low or scaled.max() > high:
        worst_value = scaled.min() if scaled.min() < low else scaled.max()
        message = f"deviation of the scaled target is {worst_value:.3g}: check its scale"
        yield Finding("warning", message)


def _mode(statistics: LabelStatistics) -> Iterator[Finding]:
    value, times = statistics.counts.most_common(1)[0]
    fraction = times / statistics.counted
    if fraction < NEARLY_CONSTANT:
        return
    rule = statistics.rule
    certain = fraction >= CONSTANT and rule.kind == "dense_regression"
    shown = rule.classes[int(value)] if rule.has_classes else f"{value:.6g}"
    message = f"nearly constant: {_percent(fraction)} of the values are {shown}"
    yield Finding("error" if certain else "warning", message)


def _copies(statistics: DataStatistics) -> Iterator[Finding]:
    groups = defaultdict(list)
    for key, fingerprint in zip(statistics.keys, statistics.images, strict=True):
        groups[fingerprint].append(key)
    copies = statistics.num_samples - len(groups)
    if copies and statistics.flat_images < statistics.num_samples:
        first = next(keys for keys in groups.values() if len(keys) > 1)
        level: Level = "error" if len(groups) == 1 else "warning"
        example = f"{first[0]} and {first[1]}"
        message = f"{copies} of {statistics.num_samples} images are copies ({example})"
        yield Finding(level, message)


def _equal_tasks(statistics: DataStatistics) -> Iterator[tuple[str, str, int]]:
    """Yield pairs of tasks whose labels are equal in all samples with both, and their number."""
    groups: dict[bool, list[str]] = {False: [], True: []}
    for task, seen in statistics.labels.items():
        informative = seen.present > seen.empty and not seen.flat_channels.all()
        if informative:
            groups[seen.rule.dense].append(task)
    for dense, tasks in groups.items():
        prints = np.full((len(tasks), statistics.num_samples), -1, np.int64)  # [N,S]
        for row, task in enumerate(tasks):
            of_task = statistics.labels[task].prints
            prints[row, list(of_task)] = list(of_task.values())
        least = 1 if dense else FEW_TO_COMPARE
        for first, second in combinations(range(len(tasks)), 2):
            both = (prints[first] >= 0) & (prints[second] >= 0)
            count = int(both.sum())
            if count >= least and (prints[first] == prints[second])[both].all():
                yield tasks[first], tasks[second], count


def _percent(fraction: float) -> str:
    return f"{100 * fraction:.4g} %"


def _listed(names: Sequence[str]) -> str:
    more = len(names) - MAX_NAMED
    return ", ".join([*names[:MAX_NAMED], *([f"and {more} more"] if more > 0 else [])])
