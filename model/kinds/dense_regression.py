"""One value or several for every pixel.

Legend: n tasks of one signature, B batch, C channels, O outputs, H, W.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dmtg.plugins import register_task_kind
from model.kinds.kind import StoredField
from model.kinds.value_kind import ValueKind
from model.tasks.display import DISPLAYS, Picture
from model.tasks.spec import TaskSpec
from model.tasks.targets import Targets

_METRIC_OF_DISPLAY = {"depth": "depth", "normal": "normal"}


@register_task_kind("dense_regression")
class DenseRegression(ValueKind):
    """A map of `channels` values per pixel."""

    default_loss = "l1"
    default_metric = "dense_regression"
    dense = True
    stored_as = "dense_regression"
    stored_dtype = torch.uint16
    output = "values"

    def check_options(self, spec: TaskSpec) -> None:
        """Check `positive_above`, which only a one-channel map that is no depth may have."""
        self.check_left_out(spec, "ignore_index")
        if spec.positive_above is None:
            return
        if spec.channels != 1 or spec.display == "depth":
            raise spec.error(
                "positive_above",
                f"left out except for a {spec.kind} of one channel that is no depth",
            )
        if not math.isfinite(spec.positive_above):
            raise spec.error("positive_above", "a finite number")

    def metric_name(self, spec: TaskSpec) -> str:
        """Return the metric that adds what the task is about: F1, aligned error or angle."""
        by_display = _METRIC_OF_DISPLAY.get(spec.display, self.default_metric)
        return spec.metric or ("response" if spec.positive_above is not None else by_display)

    def targets(
        self,
        specs: Sequence[TaskSpec],
        raw: Tensor | Sequence[Tensor],
        valid: Tensor,
        scaled: Callable[[Tensor], Tensor],
    ) -> Targets:
        """Return the scaled values [n,B,C,H,W]; pixels are masked from `valid_below` on."""
        values = torch.stack([labels.to(torch.float32) for labels in raw])
        mask = valid[:, :, None, None].expand(-1, -1, *values.shape[-2:]).clone()
        for row, spec in enumerate(specs):
            if spec.valid_below is not None:
                mask[row] &= (values[row] < spec.valid_below).all(dim=1)
        return Targets(torch.where(mask[:, :, None], scaled(values), 0.0), mask, valid)

    def from_field(self, field: StoredField) -> dict[str, Any]:
        """Return the number of channels and the scaling."""
        return {"channels": field.channels, **super().from_field(field)}

    def draw(self, spec: TaskSpec, values: NDArray[np.generic]) -> Picture:
        """Draw natural values [C,H,W] as the task's display does."""
        return DISPLAYS[spec.display].draw(values)

    def caption(self, spec: TaskSpec, values: NDArray[np.generic]) -> str:
        """Return the range of the colour map."""
        return DISPLAYS[spec.display].caption(values, spec.unit)

    def draw_label(
        self, spec: TaskSpec, label: NDArray[np.generic], mask: NDArray[np.bool_]
    ) -> tuple[Picture, str]:
        """Draw a label in natural units; the caption is the range of its valid values."""
        natural = label.astype(np.float64) * spec.unit_scale + spec.unit_offset
        # Invalid values must not take part in the range of the colours.
        picture = self.draw(spec, np.where(mask, natural, natural[:, mask].mean()))
        return picture, DISPLAYS[spec.display].range_text(natural[0, mask], spec.unit)
