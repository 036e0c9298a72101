"""What the metrics of every kind of task share.

Legend: B batch, C channels or classes, H, W.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor

from model.tasks.decode import per_channel
from model.tasks.spec import TaskSpec


class Metric(ABC):
    """The metrics of one task.

    Attributes:
        primary: The metric that stands for the task.
        higher_is_better: Of the primary metric.
    """

    primary = "error"
    higher_is_better = False

    def __init__(self, spec: TaskSpec) -> None:
        self.spec = spec

    @property
    @abstractmethod
    def size(self) -> int:
        """Length of a state."""

    @abstractmethod
    def _sums(self, prediction: Tensor, target: Tensor, mask: Tensor) -> Tensor:
        """Return what a batch adds to the state."""

    @abstractmethod
    def _ratios(self, sums: list[float]) -> dict[str, float]:
        """Return the metrics of a state that has seen labels."""

    def zeros(self, device: torch.device | str = "cpu") -> Tensor:
        """Return the state before any sample."""
        return torch.zeros(self.size, dtype=torch.float64, device=device)

    def update(self, state: Tensor, prediction: Tensor, target: Tensor, mask: Tensor) -> Tensor:
        """Return the state with one more batch; values outside the mask are not looked at."""
        return state + self._sums(prediction, target, mask).to(torch.float64)

    def compute(self, state: Tensor) -> dict[str, float]:
        """Return the metrics by name; empty where the state has not seen a single label."""
        sums = state.tolist()
        return self._ratios(sums) if any(sums) else {}


def natural_errors(spec: TaskSpec, prediction: Tensor, target: Tensor) -> Tensor:
    """Return absolute errors in the natural unit, float64 in the shape of the prediction."""
    errors = (prediction.double() - target.double()).abs()
    return errors * per_channel(spec.scale, errors) * abs(spec.unit_scale)
