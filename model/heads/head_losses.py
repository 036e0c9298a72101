"""From the predictions of the stacked heads to the losses of all heads.

Legend: N tasks, K branches, B batch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from model.heads.layout import HeadSelection
from model.losses.loss import get_loss
from model.tasks.targets import Targets

Predictions = Mapping[str, Sequence[Any]]  # per stack and branch a tensor [m,B,...], or None


def head_losses(
    loss_of: Mapping[str, str],
    predictions: Predictions,
    selection: HeadSelection,
    targets: Mapping[str, Targets],
    shape: tuple[int, int],
    *,
    per_sample: bool,
) -> Tensor:
    """Return the sums of the sample losses [N,K], or all of them [N,K,B]; zero without a head.

    Args:
        loss_of: Name of the loss of every stack.
        predictions: Of the heads of the selection.
        shape: N and K.
    """
    losses = [
        get_loss(loss_of[name]).sample_losses(prediction, targets[name].select(rows))
        for name, stack in selection.stacked_heads.items()
        for prediction, rows in zip(predictions[name], stack.tasks, strict=True)
        if rows is not None
    ]
    cells = torch.cat(losses if per_sample else [loss.sum(dim=1) for loss in losses])
    matrix = torch.zeros((shape[0] * shape[1], *cells.shape[1:]), device=cells.device)
    return matrix.index_copy(0, selection.cells, cells).unflatten(0, shape)
