"""The method `uncertainty` (Kendall, Gal and Cipolla 2018, arXiv 1705.07115).

Every task has a learned s_n = log(sigma_n^2), and the objective is

    sum_n c_n exp(-s_n) loss_n + s_n / 2,

with c_n = 1/2 for losses of values (eq. 7) and 1 for losses of classes (eq. 10). The s_n follow
its gradient in them, c_n exp(-s_n) loss_n against 1/2, with an Adam of their own.

Legend: N tasks.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar

import torch
from torch import Tensor
from typing_extensions import override

from dmtg.plugins import register_loss_weighting
from model.kinds.kind import get_kind
from model.losses.loss import ClassLoss
from model.tasks.spec import TaskSpec
from model.transfer import copy_to_device
from trainer.config.config import Config
from trainer.config.loss_weights import LossWeightsSection
from trainer.config.section import PositiveFloat
from trainer.loss_weights.adam_vector import AdamVector
from trainer.loss_weights.weighting import LossWeighting, WeightingInput

_BOUND = 20.0  # of s: a weight stays between 1e-9 and 5e8 where a loss vanishes or explodes


class UncertaintySection(LossWeightsSection):
    """The keys of `uncertainty`."""

    lr: PositiveFloat | None = None
    """Learning rate of the uncertainties; null takes `optim.lr`."""


@register_loss_weighting("uncertainty")
class UncertaintyWeights(LossWeighting):
    """Weights from learned uncertainties of the tasks."""

    section: ClassVar[type[LossWeightsSection]] = UncertaintySection

    def __init__(
        self, config: Config, tasks: Sequence[TaskSpec], trained: Tensor, epoch_steps: int | None
    ) -> None:
        super().__init__(config, tasks, trained, epoch_steps)
        assert isinstance(config.loss_weights, UncertaintySection), "the method has this section"
        self._lr = config.loss_weights.lr or config.optim.lr
        of_classes = [issubclass(get_kind(task.kind).loss_class, ClassLoss) for task in tasks]
        factors = torch.tensor([1.0 if classes else 0.5 for classes in of_classes])
        self._factors = copy_to_device(factors, trained.device)
        self._log_variances = AdamVector(trained, betas=config.optim.betas)

    @override
    def weights(self, step: int, losses: Tensor | None, labelled: Tensor) -> Tensor:
        return self._factors * (-self._log_variances.values).exp()

    def update(self, inputs: WeightingInput) -> None:
        """Step s along the gradient of the objective; a task without labels has none."""
        weighted = self.weights(inputs.step, None, inputs.labelled) * inputs.losses
        gradient = torch.where(inputs.labelled & self._trained, 0.5 - weighted, 0.0)
        self._log_variances.step(gradient, self._lr * inputs.lr_factor)
        self._log_variances.clamp(_BOUND)

    def tensors(self) -> dict[str, Tensor]:
        """Return s with Adam's state."""
        return self._log_variances.tensors()

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Restore `tensors`."""
        self._log_variances.load(tensors)
