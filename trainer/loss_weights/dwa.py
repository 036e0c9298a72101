"""The method `dwa`: dynamic weight average (Liu, Johns and Davison 2019, arXiv 1803.10704, eq. 7).

A task whose loss falls more slowly than those of others gets a larger weight. With L_n(t) the mean
loss of an epoch and r_n = L_n(t-1) / L_n(t-2), the weights of epoch t are N softmax_n(r_n / T). In
the first two epochs, and for a task without two of them with labels, r_n is 1.

Legend: N tasks.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar

import torch
from torch import Tensor
from typing_extensions import override

from dmtg.plugins import register_loss_weighting
from model.tasks.spec import TaskSpec
from trainer.config.config import Config
from trainer.config.loss_weights import LossWeightsSection
from trainer.config.section import PositiveFloat, PositiveInt
from trainer.errors import UserError
from trainer.loss_weights.weighting import LossWeighting, WeightingInput, masked_softmax


class DwaSection(LossWeightsSection):
    """The keys of `dwa`."""

    temperature: PositiveFloat = 2.0
    """Temperature T of the softmax over the tasks; a higher one makes weights more equal."""
    every: PositiveInt | None = None
    """Number of steps over which losses are averaged; null takes those of an epoch."""


@register_loss_weighting("dwa")
class DwaWeights(LossWeighting):
    """Weights from the rates at which the mean losses fall."""

    section: ClassVar[type[LossWeightsSection]] = DwaSection

    def __init__(
        self, config: Config, tasks: Sequence[TaskSpec], trained: Tensor, epoch_steps: int | None
    ) -> None:
        super().__init__(config, tasks, trained, epoch_steps)
        assert isinstance(config.loss_weights, DwaSection), "the method has this section"
        self._temperature = config.loss_weights.temperature
        every = config.loss_weights.every or epoch_steps
        if every is None:
            raise UserError(
                "loss_weights.every: required and not given: method 'dwa' averages over epochs, "
                "and these training data have no end"
            )
        self._every = every
        self._period = 0
        self._sums = torch.zeros_like(trained, dtype=torch.float32)
        self._counts = torch.zeros_like(self._sums)
        self._previous = torch.full_like(self._sums, torch.nan)
        self._ratios = torch.ones_like(self._sums)

    @override
    def weights(self, step: int, losses: Tensor | None, labelled: Tensor) -> Tensor:
        if step // self._every > self._period:
            self._end_period()
            self._period = step // self._every
        share = masked_softmax(self._ratios / self._temperature, self._trained)
        return self._trained.sum() * share

    def _end_period(self) -> None:
        seen = self._counts > 0
        mean = self._sums / self._counts.clamp_min(1.0)
        known = seen & (self._previous > 0)
        self._ratios = torch.where(known, mean / self._previous, 1.0)
        self._previous = torch.where(seen, mean, self._previous)
        self._sums = torch.zeros_like(self._sums)
        self._counts = torch.zeros_like(self._counts)

    def update(self, inputs: WeightingInput) -> None:
        """Add the losses of a step to the mean."""
        self._sums = self._sums + torch.where(inputs.labelled, inputs.losses, 0.0)
        self._counts = self._counts + inputs.labelled

    def tensors(self) -> dict[str, Tensor]:
        """Return the sums of this period, the means of the last one, and the ratios, all [N]."""
        return {
            "period": torch.tensor(self._period),
            "sums": self._sums,
            "counts": self._counts,
            "previous": self._previous,
            "ratios": self._ratios,
        }

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Restore `tensors`."""
        self._period = int(tensors["period"])
        device = self._trained.device
        self._sums, self._counts, self._previous, self._ratios = (
            tensors[name].to(device) for name in ("sums", "counts", "previous", "ratios")
        )
