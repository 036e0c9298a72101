"""Statistics of labels and images: counts, ranges and fingerprints, updated batch by batch."""
# Shapes: B batch, N tasks, C channels, H, W, V valid values of a channel.

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from data_pipelines.reading.collate import Batch
from data_pipelines.shards.field import CLASS_KINDS, FieldKind

FEW_ULPS = 8  # float32 values that differ by at most this many ulps are equal up to rounding
MAX_COUNTED = 4096  # distinct values whose counts are kept
MAX_COUNTED_PIXELS = 1 << 14  # pixels of one label


@dataclass(frozen=True)
class LabelRule:
    """The meaning of the values of a task's label.

    Attributes:
        task: Name of the task.
        kind: Task kind of the label.
        classes: Names of the classes; empty for regressions.
        scale: Divisor of the values in the loss, one per channel or one for all.
        valid_below: Stored dense values at or above it are invalid pixels.
        ignore_index: Class id of pixels without a label.
    """

    task: str
    kind: FieldKind
    classes: tuple[str, ...] = ()
    scale: tuple[float, ...] = (1.0,)
    valid_below: float | None = None
    ignore_index: int | None = None

    @property
    def has_classes(self) -> bool:
        """Whether values are ids of classes."""
        return self.kind in CLASS_KINDS or self.kind == "binary"

    @property
    def dense(self) -> bool:
        """Whether the label has a value for every pixel."""
        return self.kind.startswith("dense")

    def valid_pixels(self, label: np.ndarray) -> np.ndarray:
        """Return which pixels [H,W] of a label [C,H,W] count in the loss."""
        if self.has_classes:
            return self.known_pixels(label) & (label[0] != self.ignore_index)
        valid = np.isfinite(label).all(axis=0)
        return valid if self.valid_below is None else valid & (label < self.valid_below).all(axis=0)

    def known_pixels(self, label: np.ndarray) -> np.ndarray:
        """Return which pixels [H,W] of class ids [1,H,W] have a class or the ignored id."""
        known = (label[0] >= 0) & (label[0] < len(self.classes))
        return known | (label[0] == self.ignore_index)


@dataclass
class LabelStatistics:
    """Statistics of one task's labels.

    Attributes:
        present: Number of samples that have the label.
        empty: Number of labels of which every pixel is invalid or ignored.
        flat: Number of dense labels, not empty, with a single value in each channel.
        pixels: Number of pixels of the labels; for scalar kinds, of labels.
        valid: Number of pixels that count in the loss.
        unknown: Number of pixels with an id of no class.
        low, high: Least and greatest valid value [C], in stored units.
        total, squares: Sums of the valid values and of their squares [C].
        counts: Occurrences of the most frequent values, among `counted` values.
        counted: Number of values that were counted, of all channels.
        prints: Fingerprint of each label, by number of the sample.
        dtypes: Types that the labels are stored in.
    """

    rule: LabelRule
    present: int = 0
    empty: int = 0
    flat: int = 0
    pixels: int = 0
    valid: int = 0
    unknown: int = 0
    low: np.ndarray = field(default_factory=lambda: np.array([np.inf]))
    high: np.ndarray = field(default_factory=lambda: np.array([-np.inf]))
    total: np.ndarray = field(default_factory=lambda: np.zeros(1))
    squares: np.ndarray = field(default_factory=lambda: np.zeros(1))
    counts: Counter[float] = field(default_factory=Counter)
    counted: int = 0
    prints: dict[int, int] = field(default_factory=dict)
    dtypes: set[str] = field(default_factory=set)

    @property
    def mean(self) -> np.ndarray:
        """Mean of the valid values [C]."""
        return self.total / max(self.valid, 1)

    @property
    def deviation(self) -> np.ndarray:
        """Standard deviation of the valid values [C]."""
        return np.sqrt(np.maximum(self.squares / max(self.valid, 1) - self.mean**2, 0.0))

    @property
    def flat_channels(self) -> np.ndarray:
        """Whether each channel [C] has a single value in all samples, up to rounding."""
        return few_ulps(self.low, self.high)

    def add(self, number: int, label: np.ndarray) -> None:
        """Add the label of a sample: [C,H,W], or a scalar as [1,1,1]."""
        rule = self.rule
        mask = rule.valid_pixels(label)
        values = label[:, mask]  # [C,V]
        self.present += 1
        self.pixels += mask.size
        self.valid += values.shape[1]
        if rule.has_classes:
            self.unknown += int(mask.size - rule.known_pixels(label).sum())
        self.dtypes.add(label.dtype.name)
        self.prints[number] = fingerprint(label.astype(np.float32))
        if values.shape[1] == 0:
            self.empty += 1
            return
        low, high = values.min(axis=1).astype(float), values.max(axis=1).astype(float)
        self.flat += rule.dense and bool(few_ulps(low, high).all())
        self.low, self.high = np.minimum(self.low, low), np.maximum(self.high, high)
        self.total = self.total + values.sum(axis=1, dtype=np.float64)
        self.squares = self.squares + np.square(values, dtype=np.float64).sum(axis=1)
        self._count(values)

    def _count(self, values: np.ndarray) -> None:
        part = values[:, :: -(-values.shape[1] // MAX_COUNTED_PIXELS)]
        distinct, times = np.unique(part, return_counts=True)
        self.counts.update(dict(zip(distinct.tolist(), times.tolist(), strict=True)))
        self.counted += part.size
        if len(self.counts) > 2 * MAX_COUNTED:
            self.counts = Counter(dict(self.counts.most_common(MAX_COUNTED)))


class DataStatistics:
    """Statistics of a dataset.

    Args:
        rules: One per task, in the order of the batches' tasks.

    Attributes:
        labels: Statistics by task.
        keys: Names of the samples.
        images: Fingerprint of each image.
        flat_images: Number of images of one colour.
    """

    def __init__(self, rules: Sequence[LabelRule]) -> None:
        self.labels = {rule.task: LabelStatistics(rule) for rule in rules}
        self.keys: list[str] = []
        self.images: list[int] = []
        self.flat_images = 0

    @property
    def num_samples(self) -> int:
        """Number of samples added."""
        return len(self.keys)

    def update(self, batch: Batch) -> None:
        """Add a batch, which must be in the host's memory; fillers are skipped."""
        labels, valid = batch.labels, batch.valid
        real = [row for row, key in enumerate(batch.keys) if key]
        for offset, row in enumerate(real):
            image = batch.images[row].numpy()
            self.images.append(fingerprint(image))
            self.flat_images += bool((image == image[:, :1, :1]).all())
            for task, statistics in self.labels.items():
                if valid[task][row]:
                    label = labels[task][row].numpy()
                    number = self.num_samples + offset
                    statistics.add(number, label if label.ndim else label.reshape(1, 1, 1))
        self.keys += [batch.keys[row] for row in real]


def fingerprint(array: np.ndarray) -> int:
    """Return a hash from 0 to 2**56 - 1 of an array's values."""
    digest = hashlib.blake2b(np.ascontiguousarray(array).data, digest_size=7)
    return int.from_bytes(digest.digest(), "big")


def few_ulps(low: np.ndarray, high: np.ndarray) -> np.ndarray:
    """Return whether low and high are equal float32 numbers, up to the last few bits."""
    largest = np.maximum(np.abs(low), np.abs(high)).astype(np.float32)
    with np.errstate(invalid="ignore"):  # without values low is infinite and high minus infinite
        return (high - low) <= FEW_ULPS * np.spacing(largest)
