"""Base class of the kinds whose labels are class ids.

Legend: n tasks of one signature, B batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from typing_extensions import override

from model.kinds.kind import StoredField, TaskKind
from model.losses.loss import ClassLoss, class_loss
from model.tasks.constant import ClassCounts, ConstantPredictor
from model.tasks.spec import TaskSpec
from model.tasks.targets import IGNORED, Targets


class ClassKind(TaskKind):
    """A kind whose labels are class ids."""

    loss_class = ClassLoss

    def check(self, spec: TaskSpec) -> None:
        """Check that there are classes and no scaling, then as every kind."""
        self.check_num_classes(spec)
        super().check(spec)
        if (spec.mean, spec.scale) != ((0.0,), (1.0,)):
            raise spec.error("mean, scale", "left out: labels are ids")

    def check_num_classes(self, spec: TaskSpec) -> None:
        """Check the number of classes."""
        if spec.channels < 2:
            raise spec.error("channels", "the number of classes, at least 2")

    def class_names(self, spec: TaskSpec) -> tuple[str, ...]:
        """Return the names of the classes; without any their ids."""
        return spec.classes or tuple(str(number) for number in range(self.num_names(spec)))

    def constant_predictor(self, spec: TaskSpec) -> ConstantPredictor[ClassCounts]:
        """Return a predictor of the most frequent class."""
        return ConstantPredictor(ClassCounts(self.num_names(spec)), class_loss(spec.loss).constant)

    def from_field(self, field: StoredField) -> dict[str, Any]:
        """Return the names and the number of the classes."""
        classes = list(field.classes)
        return {"classes": classes, "channels": len(classes)} if classes else {}

    @override
    def stored_channels(self, spec: TaskSpec) -> int:
        """Return 1: ids have one channel."""
        return 1

    def label_text(self, spec: TaskSpec, value: float) -> str:
        """Return the name of the class; without a name its id."""
        return spec.classes[int(value)] if spec.classes else str(int(value))


def scalar_ids(raw: Tensor | Sequence[Tensor], valid: Tensor) -> Targets:
    """Return class ids [n,B] as targets."""
    assert isinstance(raw, Tensor)
    return Targets(torch.where(valid, raw, IGNORED).long(), valid, valid)
