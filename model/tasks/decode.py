"""Decode predictions to probabilities, classes and values in natural units.

Legend: B batch, C channels or classes, O outputs, H, W.
"""

from __future__ import annotations

import torch
from torch import Tensor

from dmtg.plugins import TASK_KINDS
from model.tasks.spec import TaskSpec
from model.transfer import copy_to_device


def natural(spec: TaskSpec, prediction: Tensor) -> Tensor:
    """Return a task's prediction in natural units, see `TaskKind.natural`.

    Args:
        prediction: Outputs of the task's head, [B,O] or [B,O,H,W].
    """
    return TASK_KINDS[spec.kind]().natural(spec, prediction)


def class_ids(spec: TaskSpec, prediction: Tensor) -> Tensor:
    """Return the most probable class, long [B] or [B,H,W]; never the ignored one."""
    if spec.ignore_index is not None and 0 <= spec.ignore_index < spec.outputs:
        prediction = prediction.clone()
        prediction[:, spec.ignore_index] = -torch.inf
    return prediction.argmax(dim=1)


def natural_values(spec: TaskSpec, scaled: Tensor) -> Tensor:
    """Return scaled values [B,C] or [B,C,H,W], as a head predicts them, in the natural unit."""
    raw = scaled * per_channel(spec.scale, scaled) + per_channel(spec.mean, scaled)
    return raw * spec.unit_scale + spec.unit_offset


def per_channel(constants: tuple[float, ...], values: Tensor) -> Tensor:
    """Return one constant per channel, shaped to broadcast over values [B,C] or [B,C,H,W]."""
    shape = (-1,) + (1,) * (values.ndim - 2)
    return copy_to_device(torch.tensor(constants, dtype=values.dtype), values.device).view(shape)
