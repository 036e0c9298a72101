"""One of several classes for an image.

Legend: n tasks of one signature, B batch, C classes, O outputs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor
from typing_extensions import override

from dmtg.plugins import register_task_kind
from model.kinds.class_kind import ClassKind, scalar_ids
from model.losses.loss import class_loss
from model.tasks.spec import TaskSpec
from model.tasks.targets import Targets


@register_task_kind("multiclass")
class Multiclass(ClassKind):
    """One class of `channels`."""

    default_loss = "cross_entropy"
    default_metric = "multiclass"
    stored_as = "multiclass"
    output = "probabilities"

    @override
    def targets(
        self,
        specs: Sequence[TaskSpec],
        raw: Tensor | Sequence[Tensor],
        valid: Tensor,
        scaled: Callable[[Tensor], Tensor],
    ) -> Targets:
        """Return class ids [n,B]."""
        return scalar_ids(raw, valid)

    def natural(self, spec: TaskSpec, prediction: Tensor) -> Tensor:
        """Return the probabilities of the classes [B,C]."""
        return class_loss(spec.loss).probabilities(prediction)

    def record(self, spec: TaskSpec, value: Tensor) -> dict[str, Any]:
        """Return the most probable class and all probabilities, by name."""
        probabilities = dict(zip(self.class_names(spec), value.tolist(), strict=True))
        best = max(probabilities, key=probabilities.__getitem__)
        return {"value": best, "probabilities": probabilities}
