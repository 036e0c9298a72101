"""One of several classes for every pixel.

Legend: n tasks of one signature, B batch, C classes, O outputs, H, W.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from typing_extensions import override

from dmtg.plugins import register_task_kind
from model.kinds.class_kind import ClassKind
from model.tasks.decode import class_ids
from model.tasks.display import DISPLAYS, Picture
from model.tasks.spec import TaskSpec
from model.tasks.targets import IGNORED, Targets


@register_task_kind("dense_classification")
class DenseClassification(ClassKind):
    """A map of one class of `channels` per pixel."""

    default_loss = "cross_entropy"
    default_metric = "dense_classification"
    dense = True
    stored_as = "dense_classification"
    stored_dtype = torch.uint8
    output = "class ids"

    def check_options(self, spec: TaskSpec) -> None:
        """Allow `ignore_index`."""
        for name in ("valid_below", "positive_above"):
            self.check_left_out(spec, name)

    @override
    def targets(
        self,
        specs: Sequence[TaskSpec],
        raw: Tensor | Sequence[Tensor],
        valid: Tensor,
        scaled: Callable[[Tensor], Tensor],
    ) -> Targets:
        """Return class ids [n,B,H,W]; an id without an output counts as not labelled."""
        ids = torch.stack([labels[:, 0].long() for labels in raw])
        mask = valid[:, :, None, None] & (ids >= 0) & (ids < specs[0].outputs)
        for row, spec in enumerate(specs):
            if spec.ignore_index is not None:
                mask[row] &= ids[row] != spec.ignore_index
        return Targets(torch.where(mask, ids, IGNORED), mask, valid)

    def natural(self, spec: TaskSpec, prediction: Tensor) -> Tensor:
        """Return the most probable classes [B,H,W]."""
        return class_ids(spec, prediction)

    @override
    def draw(self, spec: TaskSpec, values: NDArray[np.generic]) -> Picture:
        """Draw class ids [H,W]."""
        return DISPLAYS["classes"].draw(values[None])

    def caption(self, spec: TaskSpec, values: NDArray[np.generic]) -> str:
        """Return nothing: colours stand for classes."""
        return DISPLAYS["classes"].caption(values[None], spec.unit)

    def draw_label(
        self, spec: TaskSpec, label: NDArray[np.generic], mask: NDArray[np.bool_]
    ) -> tuple[Picture, str]:
        """Draw class ids; the caption is how many classes there are among the valid pixels."""
        ids = np.where(mask, label[0], 0)
        return self.draw(spec, ids), f"{len(np.unique(ids[mask]))} classes"
