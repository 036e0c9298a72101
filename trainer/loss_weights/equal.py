"""The method `equal`: every task has the weight 1.

Legend: N tasks.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor
from typing_extensions import override

from dmtg.plugins import register_loss_weighting
from trainer.config.loss_weights import LossWeightsSection
from trainer.loss_weights.weighting import LossWeighting


class EqualSection(LossWeightsSection):
    """No keys: every loss has the weight 1."""


@register_loss_weighting("equal")
class EqualWeights(LossWeighting):
    """The sum of the losses."""

    section: ClassVar[type[LossWeightsSection]] = EqualSection
    constant: ClassVar[bool] = True

    @override
    def weights(self, step: int, losses: Tensor | None, labelled: Tensor) -> Tensor:
        return torch.ones_like(self._trained, dtype=torch.float32)
