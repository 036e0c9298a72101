"""Counts of present, skipped and missing labels, and moments of values, of written shards."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence

from data_pipelines.shards.encoded import EncodedSample
from data_pipelines.shards.manifest import Field

STATISTICS_SPLIT = "train"
Moments = tuple[int, float, float]  # count, mean, sum of squared deviations from the mean


class MissingLabel(Exception):
    """A label, or the image, cannot be converted; the message is the reason to count."""


class Tally:
    """Counts of the samples of one shard or split.

    Attributes:
        labelled: Number of samples that have a value, by field.
        skipped: Number of source samples left out, by reason.
        missing: Number of labels left out, by field and reason.
    """

    def __init__(self, fields: Mapping[str, Field]) -> None:
        self._fields = fields
        self._values: dict[str, list[float]] = {
            name: [] for name, field in fields.items() if field.kind == "regression"
        }
        self.labelled: Counter[str] = Counter()
        self.skipped: Counter[str] = Counter()
        self.missing: defaultdict[str, Counter[str]] = defaultdict(Counter)

    def add(self, sample: EncodedSample) -> None:
        """Count the labels of a sample."""
        self.labelled.update(sample.present(self._fields))
        for name, values in self._values.items():
            key = self._fields[name].key
            if key in sample.scalars:
                values.append(sample.scalars[key])

    def moments(self) -> dict[str, Moments]:
        """Return the moments of every scalar regression that has values."""
        return {name: moments_of(values) for name, values in self._values.items() if values}


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
