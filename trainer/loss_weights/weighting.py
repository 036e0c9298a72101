"""The base of all methods that weight the losses of the tasks.

Legend: N tasks.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from dmtg.plugins import LOSS_WEIGHTINGS
from model.tasks.spec import TaskSpec
from trainer.config.config import Config
from trainer.config.loss_weights import LossWeightsSection


@dataclass(frozen=True)
class WeightingInput:
    """What a method gets from a step; the same on every rank.

    Attributes:
        step: Number of the step in its phase, from 0.
        losses: Loss of every task over the global batch, without a weight: sum_k z_nk loss_nk [N].
        labelled: Which tasks have a label in it, bool [N].
        lr_factor: Multiplier of every learning rate in this step.
        before: With `compares_losses` the losses [N] that `weights` was given, else None.
        after: With `compares_losses` the losses [N] of the same batch after the step, else None.
    """

    step: int
    losses: Tensor
    labelled: Tensor
    lr_factor: float
    before: Tensor | None = None
    after: Tensor | None = None


class LossWeighting(ABC):
    """A method that weights the losses; its state is outside the engine, equal on every rank.

    A subclass is registered with `dmtg.plugins.register_loss_weighting`. Every phase of a run has
    a new one. Nothing here may synchronise with the device.

    Args:
        config: Of the run; `config.loss_weights` is an instance of `section`.
        tasks: The N tasks.
        trained: Which of them the phase trains, bool [N], on the device of the losses.
        epoch_steps: Optimizer steps of an epoch; None where the training data have no end.

    Attributes:
        section: The keys of the method under `loss_weights`.
        constant: Whether the weights never change. The schedule `plateau` then looks at the
            weighted losses, else at the losses themselves.
        compares_losses: Whether `weights` needs the losses of the step itself, and `update` those
            of the same batch after the step. This costs one more forward pass, with gradient
            accumulation two.

    Raises:
        UserError: The section does not fit the tasks or the data.
    """

    section: ClassVar[type[LossWeightsSection]]
    constant: ClassVar[bool] = False
    compares_losses: ClassVar[bool] = False

    def __init__(
        self, config: Config, tasks: Sequence[TaskSpec], trained: Tensor, epoch_steps: int | None
    ) -> None:
        self._config, self._tasks = config, tuple(tasks)
        self._trained, self._epoch_steps = trained, epoch_steps

    @abstractmethod
    def weights(self, step: int, losses: Tensor | None, labelled: Tensor) -> Tensor:
        """Return the weights of a step [N], fp32.

        Args:
            step: Its number in the phase, from 0.
            losses: With `compares_losses` the losses of the step's batch [N], else None.
            labelled: Which tasks have a label in it, bool [N].
        """

    def update(self, inputs: WeightingInput) -> None:  # noqa: B027 - optional
        """Learn from a step; by default nothing. It is not called for a step that is left out."""

    def tensors(self) -> dict[str, Tensor]:
        """Return what a checkpoint holds; by default nothing."""
        return {}

    def load(self, tensors: Mapping[str, Tensor]) -> None:  # noqa: B027 - optional
        """Restore what `tensors` returned; the tensors are on the CPU."""


def weighting_of(config: Config) -> type[LossWeighting]:
    """Return the method of a run."""
    method: type[LossWeighting] = LOSS_WEIGHTINGS[config.loss_weights.method]
    return method


def masked_softmax(values: Tensor, mask: Tensor) -> Tensor:
    """Return the softmax [N] over the values in the mask, zero elsewhere; all zero without any."""
    return values.masked_fill(~mask, -torch.inf).softmax(dim=0).nan_to_num(0.0)
