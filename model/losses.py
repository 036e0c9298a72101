"""Per-sample losses that skip missing labels.

The loss of a task is a ratio: the sum of `sample_losses` over the sum of `sample_weights`. Both
sums may be taken over accumulation steps and processes before dividing, which keeps the loss exact
however the labelled samples are spread.

Legend: n tasks (or heads) of one signature, B batch, C channels or classes, H, W.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from model.targets import IGNORED, Targets


def sample_losses(loss: str, prediction: Tensor, targets: Targets) -> Tensor:
    """Return the loss of every sample in fp32, exactly zero for one without a label.

    A masked prediction takes no part, were it NaN, and its gradient is exactly zero. Dense `l1`
    and `mse` are means over all elements of the sample, where masked pixels count as zero (the
    published "simple" form); dense cross-entropy is a sum over the labelled pixels.

    Args:
        loss: bce, cross_entropy, l1 or mse.
        prediction: [n,B,C] or [n,B,C,H,W] of any float dtype.

    Returns:
        Losses [n,B].
    """
    # Selecting, where multiplying by the mask would let NaN * 0 through.
    prediction = torch.where(targets.mask.unsqueeze(2), prediction.float(), 0.0)
    if loss == "cross_entropy":
        losses = F.cross_entropy(
            prediction.flatten(0, 1),
            targets.target.flatten(0, 1),
            ignore_index=IGNORED,
            reduction="none",
        )
        return losses.view(*prediction.shape[:2], -1).sum(dim=2)
    target = targets.target.view(prediction.shape)
    if loss == "bce":
        losses = F.binary_cross_entropy_with_logits(prediction, target, reduction="none")
        return torch.where(targets.valid, losses.squeeze(2), 0.0)
    difference = prediction - target
    losses = difference.abs() if loss == "l1" else difference.square()
    return losses.flatten(2).mean(dim=2)


def sample_weights(loss: str, targets: Targets) -> Tensor:
    """Return what every sample adds to its task's denominator, fp32 [n,B].

    One for a labelled sample; for dense cross-entropy the number of its labelled pixels.
    """
    if loss == "cross_entropy" and targets.mask.ndim == 4:
        return targets.mask.flatten(2).sum(dim=2, dtype=torch.float32)
    return targets.valid.to(torch.float32)
