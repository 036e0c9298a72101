"""What a prediction means: probabilities, classes and values in natural units.

Legend: B batch, C channels or classes, H, W.
"""

from __future__ import annotations

import torch
from torch import Tensor

from model.tasks.spec import TaskSpec


def natural(spec: TaskSpec, prediction: Tensor) -> Tensor:
    """Return a task's prediction in the terms of the task.

    Args:
        prediction: Output of the task's head, [B,C] or [B,C,H,W].

    Returns:
        binary: probability [B]; multiclass: probabilities [B,C]; regression: values in the natural
        unit [B]; dense_regression: the same [B,C,H,W]; dense_classification: class ids [B,H,W].
    """
    if spec.kind == "binary":
        if spec.loss == "bce":
            return prediction[:, 0].sigmoid()
        return prediction.softmax(dim=1)[:, 1]
    if spec.kind == "multiclass":
        return prediction.softmax(dim=1)
    if spec.kind == "dense_classification":
        return class_ids(spec, prediction)
    values = natural_values(spec, prediction)
    return values[:, 0] if spec.kind == "regression" else values


def class_ids(spec: TaskSpec, prediction: Tensor) -> Tensor:
    """Return the most probable class, long [B] or [B,H,W]; never the ignored one."""
    if spec.ignore_index is not None and 0 <= spec.ignore_index < spec.outputs:
        ignored = torch.tensor([spec.ignore_index], device=prediction.device)
        prediction = prediction.index_fill(1, ignored, -torch.inf)
    return prediction.argmax(dim=1)


def natural_values(spec: TaskSpec, scaled: Tensor) -> Tensor:
    """Return scaled values [B,C] or [B,C,H,W], as a head predicts them, in the natural unit."""
    raw = scaled * per_channel(spec.scale, scaled) + per_channel(spec.mean, scaled)
    return raw * spec.unit_scale + spec.unit_offset


def per_channel(constants: tuple[float, ...], values: Tensor) -> Tensor:
    """Return one constant per channel, shaped to broadcast over values [B,C] or [B,C,H,W]."""
    shape = (-1,) + (1,) * (values.ndim - 2)
    return torch.tensor(constants, dtype=values.dtype, device=values.device).view(shape)
