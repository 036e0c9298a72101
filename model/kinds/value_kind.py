"""Base class of the kinds whose labels are values.

Legend: B batch, C channels, O outputs, H, W.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from model.kinds.kind import StoredField, TaskKind
from model.losses.loss import ValueLoss, value_loss
from model.tasks.constant import ConstantPredictor, ValueSample
from model.tasks.decode import natural_values
from model.tasks.spec import TaskSpec


class ValueKind(TaskKind):
    """A kind whose labels are values that a task scales."""

    loss_class = ValueLoss

    def natural(self, spec: TaskSpec, prediction: Tensor) -> Tensor:
        """Return the values in the natural unit, [B,C] or [B,C,H,W]."""
        return natural_values(spec, value_loss(spec.loss).values(prediction))

    def constant_predictor(self, spec: TaskSpec) -> ConstantPredictor[ValueSample]:
        """Return a predictor of the values with the least loss; zeros without labels."""
        loss = value_loss(spec.loss)

        def best(values: ValueSample) -> Tensor:
            if not values.count:
                return torch.zeros(spec.outputs)
            return loss.constant(values, **spec.loss_options)

        return ConstantPredictor(ValueSample(spec.channels), best)

    def from_field(self, field: StoredField) -> dict[str, Any]:
        """Return the scaling that gives the targets mean 0 and deviation 1."""
        return {} if field.mean is None else {"mean": [field.mean], "scale": [field.std]}

    def stored_channels(self, spec: TaskSpec) -> int:
        """Return the number of values."""
        return spec.channels

    def label_text(self, spec: TaskSpec, value: float) -> str:
        """Return the value in the natural unit."""
        return f"{self.label_value(spec, value):.4g} {spec.unit}".rstrip()

    def label_value(self, spec: TaskSpec, value: float) -> float:
        """Return the value in the natural unit."""
        return value * spec.unit_scale + spec.unit_offset
