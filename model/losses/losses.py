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

from model.tasks.targets import IGNORED, Targets

# (down, right), the cells of a 3x3 window read from its centre on: of equally good shifts the first
# is taken, which is none.
_SHIFTS = tuple(((4 + n) % 9 // 3 - 1, (4 + n) % 3 - 1) for n in range(9))


def sample_losses(loss: str, prediction: Tensor, targets: Targets) -> Tensor:
    """Return the loss of every sample in fp32, exactly zero for one without a label.

    A masked prediction takes no part, were it NaN, and its gradient is exactly zero. Dense `l1`
    and `mse` are means over all elements of the sample, where masked pixels count as zero (the
    published "simple" form); dense cross-entropy is a sum over the labelled pixels. `l1_shift` is
    the published "rotate" form: the least `l1` over the nine shifts of the prediction by at most
    one pixel, all within the labels' crop of one pixel on each side. There a prediction takes no
    part in a shift that lays it on a masked pixel.

    Args:
        loss: bce, cross_entropy, l1, mse or l1_shift.
        prediction: [n,B,C] or [n,B,C,H,W] of any float dtype.

    Returns:
        Losses [n,B].

    Raises:
        ValueError: If a prediction is too small for `l1_shift`.
    """
    if loss == "l1_shift":
        return _least_shifted_l1(prediction, targets)
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


def _least_shifted_l1(prediction: Tensor, targets: Targets) -> Tensor:
    """Return the least masked L1 mean over the nine shifts, [n,B]."""
    height, width = prediction.shape[-2:]
    if min(height, width) < 3:
        raise ValueError(
            f"prediction is {height}x{width} pixels, must be at least 3x3 for l1_shift"
        )
    prediction = prediction.float()
    mask = targets.mask[..., 1:-1, 1:-1].unsqueeze(2)
    target = targets.target[..., 1:-1, 1:-1]

    def masked_l1(shifted: Tensor) -> Tensor:
        return (torch.where(mask, shifted, 0.0) - target).abs().flatten(2).mean(dim=2)

    # Only the shift that is taken has a gradient: searched without, eight of nine are not stored.
    with torch.no_grad():
        losses = torch.stack(
            [
                masked_l1(prediction[..., 1 + y : height - 1 + y, 1 + x : width - 1 + x])
                for y, x in _SHIFTS
            ]
        )
        cell = (losses.argmin(dim=0) + 4) % 9  # [n,B]; a tensor of _SHIFTS would stall the device
        offset = (cell // 3 - 1) * width + cell % 3 - 1
        pixels = torch.arange(height * width, device=prediction.device).view(height, width)
        taken = pixels[1:-1, 1:-1].flatten() + offset[..., None]  # [n,B,(H-2)*(W-2)]
    index = taken.unsqueeze(2).expand(-1, -1, prediction.shape[2], -1)
    return masked_l1(prediction.flatten(3).gather(3, index).view_as(target))


def sample_weights(loss: str, targets: Targets) -> Tensor:
    """Return what every sample adds to its task's denominator, fp32 [n,B].

    One for a labelled sample; for dense cross-entropy the number of its labelled pixels.
    """
    if loss == "cross_entropy" and targets.mask.ndim == 4:
        return targets.mask.flatten(2).sum(dim=2, dtype=torch.float32)
    return targets.valid.to(torch.float32)
