"""Squared error."""

from __future__ import annotations

from torch import Tensor

from dmtg.plugins import register_loss
from model.losses.loss import ValueLoss
from model.tasks.constant import ValueSample


@register_loss("mse")
class MSE(ValueLoss):
    """Mean squared error of the scaled values."""

    kinds = ("regression", "dense_regression")
    zero_if_equal = True

    def element_losses(self, prediction: Tensor, target: Tensor) -> Tensor:
        """Return the squared errors."""
        return (prediction - target).square()

    def constant(self, values: ValueSample) -> Tensor:
        """Return the mean [C]."""
        return values.mean
