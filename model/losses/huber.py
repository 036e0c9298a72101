"""The Huber loss."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import Tensor

from dmtg.plugins import register_loss
from model.losses.loss import ValueLoss
from model.losses.options import LossOption
from model.tasks.constant import ValueSample

_DELTA = 1.0
_ITERATIONS = 50


@register_loss("huber")
class Huber(ValueLoss):
    """Half the squared error up to `delta` scaled units, linear above it (Huber 1964)."""

    kinds: ClassVar[tuple[str, ...]] = ("regression", "dense_regression")
    zero_if_equal = True
    options: ClassVar[Mapping[str, LossOption]] = {
        "delta": LossOption(_DELTA, "above 0", lambda value: value > 0)
    }

    def element_losses(
        self, prediction: Tensor, target: Tensor, delta: Tensor | float = _DELTA
    ) -> Tensor:
        """Return the Huber losses."""
        error = (prediction - target).abs()
        return torch.where(error <= delta, 0.5 * error * error, delta * (error - 0.5 * delta))

    def constant(self, values: ValueSample, delta: float = _DELTA) -> Tensor:
        """Return Huber's estimate [C] of the location, by iteratively reweighted least squares."""
        constant = values.median
        for _ in range(_ITERATIONS):
            weights = delta / (values.sample - constant).abs().clamp_min(delta)
            constant = (weights * values.sample).sum(dim=0) / weights.sum(dim=0)
        return constant
