"""The base class of losses: per-sample losses without missing labels, and decoded outputs.

The loss of a task is a ratio: the sum of `sample_losses` over the sum of `sample_weights`. Both
sums may be taken over accumulation steps and processes before dividing, which keeps the loss exact
however the labelled samples are spread.

Legend: n tasks (or heads) of one signature, B batch, C channels or classes, O outputs, H, W.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from functools import cache
from typing import ClassVar

import torch
from torch import Tensor

from dmtg.plugins import LOSSES
from model.losses.options import LossOption
from model.tasks.constant import ClassCounts, ValueSample
from model.tasks.targets import Targets


class Loss(ABC):
    """A loss. Register a subclass with `@register_loss("name")`; it is made without arguments.

    Derive a loss of class ids from `ClassLoss`, a loss of values from `ValueLoss`.

    Attributes:
        kinds: Names of the task kinds that may be trained with the loss.
        options: What a task may set under `loss_options`; `Targets.options` has the values.
    """

    kinds: ClassVar[tuple[str, ...]] = ()
    options: ClassVar[Mapping[str, LossOption]] = {}

    @abstractmethod
    def sample_losses(self, prediction: Tensor, targets: Targets) -> Tensor:
        """Return the loss of every sample in fp32, exactly zero for one without a label.

        A masked prediction must take no part, even if it is NaN, and its gradient must be exactly
        zero: see `masked`.

        Args:
            prediction: [n,B,O] or [n,B,O,H,W] of any float dtype.

        Returns:
            Losses [n,B].
        """

    def sample_weights(self, targets: Targets) -> Tensor:
        """Return what every sample adds to its task's denominator, fp32 [n,B].

        By default one for a labelled sample.
        """
        return targets.valid.to(torch.float32)

    def outputs(self, channels: int) -> int:
        """Return how many values O a head predicts for a task of `channels` channels."""
        return channels


class ClassLoss(Loss):
    """A loss of class ids. By default a head has one logit for each class, and two at least.

    Attributes:
        takes_ids: Whether targets are class ids, long, `IGNORED` where masked. Otherwise they are
            the ids as floats, zero where masked.
    """

    takes_ids: ClassVar[bool] = True

    def outputs(self, channels: int) -> int:
        """Return one output per class; a binary task has one channel and two classes."""
        return max(2, channels)

    def probabilities(self, prediction: Tensor) -> Tensor:
        """Return the probabilities of the classes [B,C] for outputs [B,O]."""
        return prediction.softmax(dim=1)

    def probability(self, prediction: Tensor) -> Tensor:
        """Return the probability of the positive class [B] for the outputs [B,O] of two classes."""
        return self.probabilities(prediction)[:, 1]

    def positive(self, prediction: Tensor) -> Tensor:
        """Return whether the positive class is predicted, bool [B], for outputs [B,O]."""
        return prediction[:, 1] > prediction[:, 0]

    def constant(self, counts: ClassCounts) -> Tensor:
        """Return outputs [O] that always predict the most frequent class."""
        return torch.eye(counts.num_classes)[counts.most_frequent]


class ValueLoss(Loss):
    """A loss of values: the mean of `element_losses` over all elements of the sample.

    Masked pixels count as elements with a loss of zero (the published "simple" form). Both methods
    below get the options that a task of the stack sets as keywords: `element_losses` as tensors
    that can be broadcast, `constant` as numbers.

    Attributes:
        zero_if_equal: Whether `element_losses(x, x)` is exactly zero: masked elements, where both
            are zero, then need no second mask.
    """

    zero_if_equal: ClassVar[bool] = False

    @abstractmethod
    def element_losses(self, prediction: Tensor, target: Tensor) -> Tensor:
        """Return the loss of every element, fp32 [n,B,C] or [n,B,C,H,W].

        Args:
            prediction: [n,B,O] or [n,B,O,H,W], zero where it is masked.
            target: Scaled values [n,B,C] or [n,B,C,H,W], zero where they are masked.
        """

    @abstractmethod
    def constant(self, values: ValueSample) -> Tensor:
        """Return the outputs [O] of a head that predicts the constant with the least loss."""

    def values(self, prediction: Tensor) -> Tensor:
        """Return the scaled values [B,C,...] that outputs [B,O,...] stand for."""
        return prediction

    def sample_losses(self, prediction: Tensor, targets: Targets) -> Tensor:
        """Return the mean element loss of every sample, see `Loss.sample_losses`."""
        prediction, target = masked(prediction, targets), targets.target
        target = target if target.ndim == prediction.ndim else target.unsqueeze(2)
        losses = self.element_losses(prediction, target, **targets.numbers_like(prediction))
        if not self.zero_if_equal:
            losses = torch.where(targets.mask.unsqueeze(2), losses, 0.0)
        return losses.flatten(2).mean(dim=2)


def masked(prediction: Tensor, targets: Targets) -> Tensor:
    """Return the prediction [n,B,O,...] in fp32, zero and without a gradient where it is masked."""
    # Select: NaN would remain NaN if it were multiplied by a mask of zero.
    return torch.where(targets.mask.unsqueeze(2), prediction.float(), 0.0)


def get_loss(name: str) -> Loss:
    """Return a registered loss.

    Raises:
        ValueError: The name is unknown; the message lists those that are registered.
    """
    return _instance(LOSSES[name])


def class_loss(name: str) -> ClassLoss:
    """Return the loss of a task whose labels are classes."""
    loss = get_loss(name)
    assert isinstance(loss, ClassLoss), name  # `TaskSpec` accepts no other
    return loss


def value_loss(name: str) -> ValueLoss:
    """Return the loss of a task whose labels are values."""
    loss = get_loss(name)
    assert isinstance(loss, ValueLoss), name  # `TaskSpec` accepts no other
    return loss


@cache
def _instance(loss: type[Loss]) -> Loss:
    return loss()
