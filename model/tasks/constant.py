"""The best prediction that ignores the image: the baseline of every task.

Legend: B batch, C channels or classes, O outputs, P values seen.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Generic, TypeVar

import torch
from torch import Tensor

CAPACITY = 1 << 16


class LabelSummary(ABC):
    """Statistics of the labels of a task, updated batch by batch."""

    @abstractmethod
    def update(self, target: Tensor, mask: Tensor) -> None:
        """Add the labels of a batch, as `MultiTaskNetwork.by_task` gives them."""


class ClassCounts(LabelSummary):
    """How often each class occurs.

    Attributes:
        counts: Long [C].
    """

    def __init__(self, num_classes: int) -> None:
        self.num_classes = num_classes
        self.counts = torch.zeros(num_classes, dtype=torch.long)

    def update(self, target: Tensor, mask: Tensor) -> None:
        """Count the class ids [B] or [B,H,W] inside the mask."""
        ids = target[mask].long().cpu()
        self.counts += torch.bincount(ids, minlength=self.num_classes)

    @property
    def most_frequent(self) -> int:
        """The most frequent class; the lowest of several."""
        return int(self.counts.argmax())


class ValueSample(LabelSummary):
    """Count, mean and median of the values of each channel.

    The median is taken over at most `CAPACITY` values, evenly chosen from all values.

    Attributes:
        count: Number of values P.
        sample: The chosen values, fp32 [at most CAPACITY, C].
    """

    def __init__(self, channels: int) -> None:
        self.count = 0
        self.sample = torch.empty(0, channels)
        self._sum = torch.zeros(channels, dtype=torch.float64)
        self._stride = 1

    def update(self, target: Tensor, mask: Tensor) -> None:
        """Add the values [B] or [B,C,H,W] inside the mask [B] or [B,H,W]."""
        values = target.movedim(1, -1)[mask] if target.ndim == 4 else target[mask][:, None]
        values = values.cpu()  # [P,C]
        self._sum += values.double().sum(dim=0)
        self.sample = torch.cat([self.sample, values[-self.count % self._stride :: self._stride]])
        self.count += len(values)
        while len(self.sample) > CAPACITY:
            self.sample = self.sample[::2]
            self._stride *= 2

    @property
    def mean(self) -> Tensor:
        """The mean of all values [C]."""
        return (self._sum / self.count).float()

    @property
    def median(self) -> Tensor:
        """The median of the sample [C]."""
        return self.sample.median(dim=0).values


Summary = TypeVar("Summary", bound=LabelSummary)


class ConstantPredictor(Generic[Summary]):
    """Learn from labels the constant with the least loss.

    Args:
        labels: Summary of the labels, empty at first.
        best: From the summary to the outputs [O] of a head that predicts the constant.
    """

    def __init__(self, labels: Summary, best: Callable[[Summary], Tensor]) -> None:
        self.labels = labels
        self._best = best

    def update(self, target: Tensor, mask: Tensor) -> None:
        """Add the labels of a batch, as `MultiTaskNetwork.by_task` gives them."""
        self.labels.update(target, mask)

    def constant(self) -> Tensor:
        """Return the outputs [O] of a head that predicts the constant; finite without labels."""
        return self._best(self.labels)

    def prediction(self, batch_size: int, image_size: tuple[int, int] | None = None) -> Tensor:
        """Return the constant as a prediction [B,O], or [B,O,H,W] for a dense task."""
        return expand_constant(self.constant(), batch_size, image_size)


def expand_constant(
    constant: Tensor, batch_size: int, image_size: tuple[int, int] | None = None
) -> Tensor:
    """Return a constant [O] as a prediction [B,O], or [B,O,H,W] for a dense task."""
    if image_size is None:
        return constant.expand(batch_size, -1)
    return constant[:, None, None].expand(batch_size, -1, *image_size)
