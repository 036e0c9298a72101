"""Counts of present, skipped and missing labels, classes and values, of written shards."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence

from data_pipelines.shards.encoded import EncodedSample
from data_pipelines.shards.manifest import Field

STATISTICS_SPLIT = "train"
MAX_REASONS = 20  # for which labels of a field are missing; a value that cannot be read is one
OTHER_REASONS = "other values"
MAX_CLASS_COUNTS = 2**17  # of a split; more are not recorded, a manifest is bounded
Moments = tuple[int, float, float]  # count, mean, sum of squared deviations from the mean


class MissingLabel(Exception):
    """A label, or the image, cannot be converted; the message is the reason to count."""


class Tally:
    """Counts of the samples of one shard or split.

    Attributes:
        labelled: Number of samples that have a value, by field.
        skipped: Number of source samples left out, by reason.
        missing: Number of labels left out, by field and reason; a value that cannot be read is
            its own reason, in quotes.
        negatives: By binary field, which of -1 and 0 stood for 0; both together are ambiguous.
    """

    def __init__(self, fields: Mapping[str, Field]) -> None:
        self._fields = fields
        self._values: dict[str, list[float]] = {
            name: [] for name, field in fields.items() if field.kind == "regression"
        }
        self._classes: dict[str, Counter[int]] = {
            name: Counter()
            for name, field in fields.items()
            if field.kind in ("binary", "multiclass")
        }
        self.labelled: Counter[str] = Counter()
        self.skipped: Counter[str] = Counter()
        self.missing: defaultdict[str, Counter[str]] = defaultdict(Counter)
        self.negatives: defaultdict[str, set[str]] = defaultdict(set)

    def add(self, sample: EncodedSample) -> None:
        """Count the labels of a sample."""
        self.labelled.update(sample.present(self._fields))
        for name, values in self._values.items():
            key = self._fields[name].key
            if key in sample.scalars:
                values.append(sample.scalars[key])
        for name, counts in self._classes.items():
            key = self._fields[name].key
            if key in sample.scalars:
                counts[int(sample.scalars[key])] += 1

    def moments(self) -> dict[str, Moments]:
        """Return the moments of every scalar regression that has values."""
        return {name: moments_of(values) for name, values in self._values.items() if values}

    def class_counts(self) -> dict[str, dict[int, int]]:
        """Return the number of samples of each class id that occurs, by field."""
        return {name: dict(counts) for name, counts in self._classes.items()}


def bounded_reasons(parts: Iterable[Mapping[str, int]]) -> dict[str, int]:
    """Return the sum of counts by reason: the `MAX_REASONS` most frequent ones, and the others."""
    total: Counter[str] = Counter()
    for part in parts:
        total.update(part)
    others = total.pop(OTHER_REASONS, 0)
    ranked = sorted(total.items(), key=lambda entry: (-entry[1], entry[0]))
    kept = dict(sorted(ranked[:MAX_REASONS]))
    others += sum(count for _, count in ranked[MAX_REASONS:])
    return kept | ({OTHER_REASONS: others} if others else {})


def summed_class_counts(
    fields: Mapping[str, Field], parts: Sequence[Mapping[str, Mapping[int, int]] | None]
) -> dict[str, tuple[int, ...]]:
    """Return the number of samples of every class id of a split, by field.

    Args:
        fields: The fields of the manifest.
        parts: The counts of each shard; None for one that an earlier version wrote.

    Returns:
        Nothing where a shard was not counted, or the counts are more than `MAX_CLASS_COUNTS`.
    """
    totals: defaultdict[str, Counter[int]] = defaultdict(Counter)
    for part in parts:
        if part is None:
            return {}
        for name, counts in part.items():
            totals[name].update(counts)
    if sum(fields[name].num_classes for name in totals) > MAX_CLASS_COUNTS:
        return {}
    return {
        name: tuple(counts[number] for number in range(fields[name].num_classes))
        for name, counts in totals.items()
    }


def with_statistics(field: Field, parts: Iterable[Moments]) -> Field:
    """Return a regression with the mean and deviation of its values, unless it has them."""
    count, mean, squares = _merged(parts)
    if field.mean is not None or not squares:  # equal values have no deviation to scale by
        return field
    return field.model_copy(update={"mean": mean, "std": math.sqrt(squares / count)})


def _merged(parts: Iterable[Moments]) -> Moments:
    """Return the moments of the union of several sets (Chan, Golub and LeVeque, 1979)."""
    count, mean, squares = 0, 0.0, 0.0
    for other_count, other_mean, other_squares in parts:
        total = count + other_count
        gap = other_mean - mean
        squares += other_squares + gap * gap * count * other_count / total
        mean += gap * other_count / total
        count = total
    return count, mean, squares


def moments_of(values: Sequence[float]) -> Moments:
    """Return the moments of at least one value."""
    # Clamped to the range of the values: rounding must not give equal values a deviation.
    mean = min(max(math.fsum(values) / len(values), min(values)), max(values))
    return len(values), mean, math.fsum((value - mean) ** 2 for value in values)
