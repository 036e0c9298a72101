"""One yes or no for an image.

Legend: n tasks of one signature, B batch, O outputs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from typing_extensions import override

from dmtg.plugins import register_task_kind
from model.kinds.class_kind import ClassKind, scalar_ids
from model.losses.loss import class_loss
from model.tasks.spec import TaskSpec
from model.tasks.targets import Targets


@register_task_kind("binary")
class Binary(ClassKind):
    """Two classes, of which 1 is positive."""

    default_loss = "bce"
    default_metric = "binary"
    stored_as = "binary"
    output = "probability"

    def check_num_classes(self, spec: TaskSpec) -> None:
        """Check that there is one channel."""
        if spec.channels != 1:
            raise spec.error("channels", f"1 for a {spec.kind} task")

    @override
    def num_names(self, spec: TaskSpec) -> int:
        """Return 2."""
        return 2

    @override
    def label_value(self, spec: TaskSpec, value: float) -> bool:
        """Return whether the label is the positive class."""
        return bool(value)

    def targets(
        self,
        specs: Sequence[TaskSpec],
        raw: Tensor | Sequence[Tensor],
        valid: Tensor,
        scaled: Callable[[Tensor], Tensor],
    ) -> Targets:
        """Return ids or floats [n,B], as the loss takes them."""
        if class_loss(specs[0].loss).takes_ids:
            return scalar_ids(raw, valid)
        assert isinstance(raw, Tensor)
        return Targets(torch.where(valid, scaled(raw), 0.0), valid, valid)

    def natural(self, spec: TaskSpec, prediction: Tensor) -> Tensor:
        """Return the probability of the positive class [B]."""
        return class_loss(spec.loss).probability(prediction)

    @override
    def record(self, spec: TaskSpec, value: Tensor) -> dict[str, Any]:
        """Return the decision and the probability."""
        probability = float(value)
        return {"value": probability >= 0.5, "probability": probability}
