"""The method `given`: weights from the configuration.

Legend: N tasks.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, ClassVar

import torch
from pydantic import Field
from torch import Tensor
from typing_extensions import override

from dmtg.names import shortened
from dmtg.plugins import register_loss_weighting
from model.tasks.spec import TaskSpec
from model.transfer import copy_to_device
from trainer.config.config import Config
from trainer.config.loss_weights import LossWeightsSection
from trainer.errors import UserError
from trainer.loss_weights.weighting import LossWeighting

_LONGEST = 200  # characters of the names in a message


class GivenWeightsSection(LossWeightsSection):
    """The keys of `given`."""

    weights: dict[str, Annotated[float, Field(ge=0.0)]]
    """Loss weights by task; a task that is not named has the weight 1."""


@register_loss_weighting("given")
class GivenWeights(LossWeighting):
    """Constant weights."""

    section: ClassVar[type[LossWeightsSection]] = GivenWeightsSection
    constant: ClassVar[bool] = True

    def __init__(
        self, config: Config, tasks: Sequence[TaskSpec], trained: Tensor, epoch_steps: int | None
    ) -> None:
        super().__init__(config, tasks, trained, epoch_steps)
        assert isinstance(config.loss_weights, GivenWeightsSection), "the method has this section"
        named, names = config.loss_weights.weights, [task.name for task in tasks]
        unknown = sorted(named.keys() - set(names))
        if unknown:
            raise UserError(
                f"loss_weights.weights: {shortened(', '.join(unknown))} is not among the tasks of "
                f"the run: {shortened(', '.join(names), _LONGEST)}"
            )
        if not any(named.get(name, 1.0) for name in names):
            raise UserError("loss_weights.weights: all are 0; one at least must be above 0")
        weights = torch.tensor([named.get(name, 1.0) for name in names])
        self._weights = copy_to_device(weights, trained.device)

    @override
    def weights(self, step: int, losses: Tensor | None, labelled: Tensor) -> Tensor:
        return self._weights
