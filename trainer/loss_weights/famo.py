"""The method `famo`: fast adaptive multitask optimization (Liu et al. 2023, arXiv 2306.03792).

The logits xi of the tasks give z = softmax(xi). The network follows the gradient of
c sum_n z_n log loss_n with c = 1 / sum_n (z_n / loss_n), held constant: the weight of a task is
c z_n / loss_n, here times the number of tasks, so that the mean weight is 1. After the step the
logits follow the change of the logarithms on the same batch (algorithm 2):

    delta_n = log loss_n(before) - log loss_n(after),   xi <- Adam(xi, (d z / d xi)^T delta),

with the weight decay gamma in Adam. A task without labels in a step takes no part in it.

Legend: N tasks.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, ClassVar

import torch
from pydantic import Field
from torch import Tensor
from typing_extensions import override

from dmtg.plugins import register_loss_weighting
from model.tasks.spec import TaskSpec
from trainer.config.config import Config
from trainer.config.loss_weights import LossWeightsSection
from trainer.config.section import PositiveFloat
from trainer.loss_weights.adam_vector import AdamVector
from trainer.loss_weights.weighting import LossWeighting, WeightingInput, masked_softmax

_EPSILON = 1e-8  # added to the losses, as in the authors' code


class FamoSection(LossWeightsSection):
    """The keys of `famo`."""

    lr: PositiveFloat = 0.025
    """Learning rate of the tasks' logits."""
    decay: Annotated[float, Field(ge=0.0)] = 0.001
    """Weight decay of the tasks' logits (gamma in the paper)."""


@register_loss_weighting("famo")
class FamoWeights(LossWeighting):
    """Weights with which the logarithms of all losses fall at the same rate."""

    section: ClassVar[type[LossWeightsSection]] = FamoSection
    compares_losses: ClassVar[bool] = True

    def __init__(
        self, config: Config, tasks: Sequence[TaskSpec], trained: Tensor, epoch_steps: int | None
    ) -> None:
        super().__init__(config, tasks, trained, epoch_steps)
        section = config.loss_weights
        assert isinstance(section, FamoSection), "the method has this section"
        self._logits = AdamVector(trained, lr=section.lr, weight_decay=section.decay)

    @override
    def weights(self, step: int, losses: Tensor | None, labelled: Tensor) -> Tensor:
        assert losses is not None, "the method compares losses"
        part = self._taking_part(losses, labelled)
        shares = masked_softmax(self._logits.values, part) / (losses + _EPSILON)
        return part.sum() * (shares / shares.sum()).nan_to_num(0.0)

    def _taking_part(self, losses: Tensor, labelled: Tensor) -> Tensor:
        return self._trained & labelled & (losses > 0)

    def update(self, inputs: WeightingInput) -> None:
        """Step the logits along the change of the losses."""
        before, after = inputs.before, inputs.after
        assert before is not None and after is not None, "the method compares losses"
        part = self._taking_part(before, inputs.labelled) & after.isfinite()
        z = masked_softmax(self._logits.values, part)
        delta = (before + _EPSILON).log() - (after + _EPSILON).log()
        delta = torch.where(part, delta, 0.0)
        self._logits.step(z * (delta - (z * delta).sum()))

    def tensors(self) -> dict[str, Tensor]:
        """Return the logits with Adam's state."""
        return self._logits.tensors()

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Restore `tensors`."""
        self._logits.load(tensors)
