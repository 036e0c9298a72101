"""The base classes of metrics.

A state is a float64 vector. Updates take what the network gives: a prediction [B,O] or [B,O,H,W],
and from `MultiTaskNetwork.by_task` a target [B] or [B,C,H,W] (ids [B,H,W]) with its mask.

Legend: B batch, C channels or classes, O outputs, H, W.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar

import torch
from torch import Tensor

from model.losses.loss import value_loss
from model.tasks.decode import per_channel
from model.tasks.spec import TaskSpec


class Metric(ABC):
    """The metrics of one task. Register a subclass with `@register_metric("name")`.

    Attributes:
        kinds: Names of the task kinds that the metrics fit.
        needs: Attributes of a task that must be set where it names the metrics.
        primary: The metric that stands for the task: `error` for an error rate from 0 to 1, which
            adds to the total error of a model.
        higher_is_better: Of the primary metric.
    """

    kinds: ClassVar[tuple[str, ...]] = ()
    needs: ClassVar[tuple[str, ...]] = ()
    primary: ClassVar[str] = "error"
    higher_is_better: ClassVar[bool] = False

    def __init__(self, spec: TaskSpec) -> None:
        self.spec = spec

    @property
    @abstractmethod
    def size(self) -> int:
        """Length of a state."""

    @abstractmethod
    def sums(self, prediction: Tensor, target: Tensor, mask: Tensor) -> Tensor:
        """Return what a batch adds to the state."""

    @abstractmethod
    def ratios(self, sums: list[float]) -> dict[str, float]:
        """Return the metrics of a state that has seen labels."""

    def zeros(self, device: torch.device | str = "cpu") -> Tensor:
        """Return the state before any sample."""
        return torch.zeros(self.size, dtype=torch.float64, device=device)

    def update(self, state: Tensor, prediction: Tensor, target: Tensor, mask: Tensor) -> Tensor:
        """Return the state with one more batch; values outside the mask are not looked at.

        A prediction that is NaN makes the state NaN, although it has a most probable class, too.
        """
        undefined = (prediction.isnan().any(dim=1) & mask).any()
        state = state + self.sums(prediction, target, mask).to(torch.float64)
        return torch.where(undefined, torch.nan, state)

    def compute(self, state: Tensor) -> dict[str, float]:
        """Return the metrics by name; empty where the state has not seen a single label."""
        sums = state.tolist()
        return self.ratios(sums) if any(sums) else {}


class ValueMetric(Metric):
    """The metrics of a task whose labels are values: predictions are decoded by its loss."""

    def __init__(self, spec: TaskSpec) -> None:
        super().__init__(spec)
        self._loss = value_loss(spec.loss)

    def update(self, state: Tensor, prediction: Tensor, target: Tensor, mask: Tensor) -> Tensor:
        """Return the state with one more batch, see `Metric.update`."""
        return super().update(state, self._loss.values(prediction), target, mask)


def within(mask: Tensor, values: Tensor, filler: float) -> Tensor:
    """Return the values within the mask; on a GPU all values, with a filler outside of the mask.

    On a GPU the number of the values within the mask is not known without waiting for the device.
    """
    if values.device.type == "cpu":
        return values[mask]
    return torch.where(mask, values, filler)


def natural_errors(spec: TaskSpec, prediction: Tensor, target: Tensor) -> Tensor:
    """Return absolute errors in the natural unit, float64 in the shape of the prediction."""
    errors = (prediction.double() - target.double()).abs()
    return errors * per_channel(spec.scale, errors) * abs(spec.unit_scale)
