"""Verdicts on the statistics of a data set: what is wrong with its labels, in words."""
# Shapes: N tasks, S samples, C channels.

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Literal

import numpy as np

from data_pipelines.doctor.statistics import FEW_ULPS, DataStatistics, LabelStatistics

Level = Literal["ok", "note", "warning", "fault"]
LEVELS: tuple[Level, ...] = ("ok", "note", "warning", "fault")

MANY_LABELS = 512  # scalar labels after which a class that never came is taken for absent
MANY_EMPTY = 0.05  # share of labels without one valid pixel
MANY_FLAT = 0.5  # share of pictures that hold one value
NEARLY_CONSTANT, CONSTANT = 0.99, 0.9999  # share of the most frequent value
SCALED_DEVIATION = (1e-3, 1e2)  # a target outside is out of reach of the usual learning rates
FEW_TO_COMPARE = 16  # scalar labels that may be equal between tasks by chance
MAX_NAMED = 6


@dataclass(frozen=True)
class Finding:
    """One thing that was noticed; a fault would make training meaningless."""

    level: Level
    message: str


def worst(findings: Sequence[Finding]) -> Level:
    """The gravest level among findings."""
    return max((finding.level for finding in findings), key=LEVELS.index, default="ok")


def task_findings(statistics: LabelStatistics, *, all_seen: bool) -> list[Finding]:
    """What is wrong with the labels of one task.

    Args:
        all_seen: Whether every sample of the split was read, so that absence is proven.
    """
    if statistics.present == 0:
        return [Finding("warning", "no label in the samples read")]
    if statistics.empty == statistics.present:
        unknown = f" ({_percent(_unknown(statistics))} unknown ids)" if statistics.unknown else ""
        return [Finding("fault", f"every pixel of every label is invalid or ignored{unknown}")]
    findings = [*_coverage(statistics)]
    if statistics.rule.has_classes:
        findings += _class_findings(statistics, all_seen)
    else:
        findings += _flatness(statistics)
        findings += _scaling(statistics)
    if worst(findings) != "fault":
        findings += _mode(statistics)
    return findings


def is_flattened(statistics: LabelStatistics) -> bool:
    """Whether the labels of a regression or a segmentation say nothing about their samples.

    They hold one value throughout, up to rounding, or one value in each picture.
    """
    seen = statistics.present - statistics.empty
    if statistics.rule.dense:
        every_picture = seen > 0 and statistics.flat == seen
        return every_picture and (not statistics.rule.has_classes or len(statistics.counts) == 1)
    return seen > 1 and not statistics.rule.has_classes and bool(statistics.flat_channels.all())


def data_findings(statistics: DataStatistics) -> list[Finding]:
    """What is wrong with the images, and with labels that are equal between tasks."""
    findings = []
    number, flat = statistics.num_samples, statistics.flat_images
    if flat:
        level: Level = "fault" if flat == number else "warning"
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
        yield Finding("fault", f"stored in several types: {', '.join(sorted(statistics.dtypes))}")
    if empty / present > MANY_EMPTY:
        yield Finding("warning", f"{empty} of {present} labels have no valid pixel")
    if statistics.unknown:
        yield Finding("warning", f"{_percent(_unknown(statistics))} of ids stand for no class")


def _unknown(statistics: LabelStatistics) -> float:
    return statistics.unknown / statistics.pixels


def _class_findings(statistics: LabelStatistics, all_seen: bool) -> Iterator[Finding]:
    names = statistics.rule.classes
    seen = {int(value) for value in statistics.counts}
    if len(seen) == 1:
        name = names[next(iter(seen))]
        enough = all_seen or statistics.rule.dense or statistics.present >= MANY_LABELS
        level: Level = "fault" if enough else "warning"
        yield Finding(level, f"only class {name!r} in {statistics.present} labels")
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
        yield Finding("warning" if alone else "fault", f"flattened: {value}")
    elif statistics.rule.dense and pictures == seen:
        yield Finding("fault", f"flattened: each of the {seen} pictures holds one value")
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
    share = times / statistics.counted
    if share < NEARLY_CONSTANT:
        return
    rule = statistics.rule
    sure = share >= CONSTANT and rule.kind == "dense_regression"
    shown = rule.classes[int(value)] if rule.has_classes else f"{value:.6g}"
    message = f"nearly constant: {_percent(share)} of the values are {shown}"
    yield Finding("fault" if sure else "warning", message)


def _copies(statistics: DataStatistics) -> Iterator[Finding]:
    groups = defaultdict(list)
    for key, fingerprint in zip(statistics.keys, statistics.images, strict=True):
        groups[fingerprint].append(key)
    copies = statistics.num_samples - len(groups)
    if copies and statistics.flat_images < statistics.num_samples:
        first = next(keys for keys in groups.values() if len(keys) > 1)
        level: Level = "fault" if len(groups) == 1 else "warning"
        example = f"{first[0]} and {first[1]}"
        message = f"{copies} of {statistics.num_samples} images are copies ({example})"
        yield Finding(level, message)


def _equal_tasks(statistics: DataStatistics) -> Iterator[tuple[str, str, int]]:
    """Pairs of tasks whose labels agree wherever a sample has both, and in how many samples."""
    groups: dict[bool, list[str]] = {False: [], True: []}
    for task, seen in statistics.labels.items():
        informative = seen.present > seen.empty and not seen.flat_channels.all()
        if informative:
            groups[seen.rule.dense].append(task)
    for dense, tasks in groups.items():
        prints = np.full((len(tasks), statistics.num_samples), -1, np.int64)  # [N,S]
        for row, task in enumerate(tasks):
            own = statistics.labels[task].prints
            prints[row, list(own)] = list(own.values())
        least = 1 if dense else FEW_TO_COMPARE
        for first, second in combinations(range(len(tasks)), 2):
            both = (prints[first] >= 0) & (prints[second] >= 0)
            count = int(both.sum())
            if count >= least and (prints[first] == prints[second])[both].all():
                yield tasks[first], tasks[second], count


def _percent(share: float) -> str:
    return f"{100 * share:.4g} %"


def _listed(names: Sequence[str]) -> str:
    more = len(names) - MAX_NAMED
    return ", ".join([*names[:MAX_NAMED], *([f"and {more} more"] if more > 0 else [])])
