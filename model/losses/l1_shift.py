"""Absolute error that forgives a shift by one pixel (DMTG's published "rotate" loss).

Legend: n tasks (or heads) of one signature, B batch, C channels, H, W.
"""

from __future__ import annotations

import torch
from torch import Tensor

from dmtg.plugins import register_loss
from model.losses.l1 import L1
from model.tasks.targets import Targets

# (down, right) of the cells of a 3x3 window, the centre first: ties prefer offset (0, 0).
_SHIFTS = tuple(((4 + n) % 9 // 3 - 1, (4 + n) % 3 - 1) for n in range(9))


@register_loss("l1_shift")
class L1Shift(L1):
    """The least L1 over the nine shifts of the prediction by at most one pixel.

    All shifts are within the labels' crop of one pixel on each side. A prediction takes no part in
    a shift that moves it to a masked pixel. The best constant is the median of all pixels: the
    metrics count the border too.
    """

    kinds = ("dense_regression",)

    def sample_losses(self, prediction: Tensor, targets: Targets) -> Tensor:
        """Return the least masked L1 mean over the nine shifts, see `Loss.sample_losses`.

        Raises:
            ValueError: The prediction is smaller than 3x3 pixels.
        """
        height, width = prediction.shape[-2:]
        if min(height, width) < 3:
            raise ValueError(
                f"prediction is {height}x{width} pixels, must be at least 3x3 for l1_shift"
            )
        prediction = prediction.float()
        mask = targets.mask[..., 1:-1, 1:-1].unsqueeze(2)
        target = targets.target[..., 1:-1, 1:-1]

        def masked_l1(shifted: Tensor) -> Tensor:
            shifted = torch.where(mask, shifted, 0.0)
            return self.element_losses(shifted, target).flatten(2).mean(dim=2)

        # Only the chosen shift has a gradient: searched without one, eight of nine are not stored.
        with torch.no_grad():
            losses = torch.stack(
                [
                    masked_l1(prediction[..., 1 + y : height - 1 + y, 1 + x : width - 1 + x])
                    for y, x in _SHIFTS
                ]
            )
            cell = (losses.argmin(dim=0) + 4) % 9  # [n,B]; indexing _SHIFTS would stall the device
            offset = (cell // 3 - 1) * width + cell % 3 - 1
            pixels = torch.arange(height * width, device=prediction.device).view(height, width)
            chosen = pixels[1:-1, 1:-1].flatten() + offset[..., None]  # [n,B,(H-2)*(W-2)]
        index = chosen.unsqueeze(2).expand(-1, -1, prediction.shape[2], -1)
        return masked_l1(prediction.flatten(3).gather(3, index).view_as(target))
