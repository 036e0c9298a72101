"""One number for an image.

Legend: n tasks of one signature, B batch, O outputs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from typing_extensions import override

from dmtg.plugins import register_task_kind
from model.kinds.value_kind import ValueKind
from model.tasks.spec import TaskSpec
from model.tasks.targets import Targets


@register_task_kind("regression")
class Regression(ValueKind):
    """One value."""

    default_loss = "l1"
    default_metric = "regression"
    stored_as = "regression"

    def check(self, spec: TaskSpec) -> None:
        """Check that there is one channel, then as every kind."""
        if spec.channels != 1:
            raise spec.error("channels", f"1 for a {spec.kind} task")
        super().check(spec)

    @override
    def targets(
        self,
        specs: Sequence[TaskSpec],
        raw: Tensor | Sequence[Tensor],
        valid: Tensor,
        scaled: Callable[[Tensor], Tensor],
    ) -> Targets:
        """Return the scaled values [n,B]."""
        assert isinstance(raw, Tensor)
        return Targets(torch.where(valid, scaled(raw), 0.0), valid, valid)

    def natural(self, spec: TaskSpec, prediction: Tensor) -> Tensor:
        """Return the value in the natural unit [B]."""
        return super().natural(spec, prediction)[:, 0]

    def record(self, spec: TaskSpec, value: Tensor) -> dict[str, Any]:
        """Return the value and its unit."""
        return {"value": float(value), "unit": spec.unit}
