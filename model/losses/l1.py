"""Absolute error."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor

from dmtg.plugins import register_loss
from model.losses.loss import ValueLoss
from model.tasks.constant import ValueSample


@register_loss("l1")
class L1(ValueLoss):
    """Mean absolute error of the scaled values."""

    kinds: ClassVar[tuple[str, ...]] = ("regression", "dense_regression")
    zero_if_equal = True

    def element_losses(self, prediction: Tensor, target: Tensor) -> Tensor:
        """Return the absolute errors."""
        return (prediction - target).abs()

    def constant(self, values: ValueSample) -> Tensor:
        """Return the median [C]."""
        return values.median
