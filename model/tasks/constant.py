"""The best prediction that ignores the image: what every trained task must beat.

Legend: B batch, C channels or classes, P values seen.
"""

from __future__ import annotations

import torch
from torch import Tensor

from model.tasks.spec import TaskSpec

CAPACITY = 1 << 16


class ConstantPredictor:
    """Learns from labels the constant with the least loss.

    The most frequent class (the lowest of equals), the mean for `mse`, the median for `l1`. For
    `l1_shift` it is the median of all pixels, although the loss leaves out the border: the metrics
    do not. A median is taken over at most `CAPACITY` values, evenly chosen from all that were seen.
    """

    def __init__(self, spec: TaskSpec) -> None:
        self.spec = spec
        self._classes = max(2, spec.outputs)
        self._counts = torch.zeros(self._classes, dtype=torch.long)
        self._sum = torch.zeros(spec.outputs, dtype=torch.float64)
        self._seen = 0
        self._stride = 1
        self._sample = torch.empty(0, spec.outputs)

    def update(self, target: Tensor, mask: Tensor) -> None:
        """Take in the labels of a batch, as `TaskLabels.by_task` gives them."""
        if "regression" not in self.spec.kind:
            ids = target[mask].long().cpu()
            self._counts += torch.bincount(ids, minlength=self._classes)
            return
        values = target.movedim(1, -1)[mask] if target.ndim == 4 else target[mask][:, None]
        values = values.cpu()  # [P,C]
        self._sum += values.double().sum(dim=0)
        self._sample = torch.cat([self._sample, values[-self._seen % self._stride :: self._stride]])
        self._seen += len(values)
        while len(self._sample) > CAPACITY:
            self._sample = self._sample[::2]
            self._stride *= 2

    def constant(self) -> Tensor:
        """Return the outputs [C] of a head that predicts the constant; zeros without labels."""
        if "regression" not in self.spec.kind:
            best = int(self._counts.argmax())
            if self.spec.loss == "bce":
                return torch.tensor([2.0 * best - 1.0])
            return torch.eye(self._classes)[best]
        if self._seen == 0:
            return torch.zeros(self.spec.outputs)
        if self.spec.loss == "mse":
            return (self._sum / self._seen).float()
        return self._sample.median(dim=0).values

    def prediction(self, batch_size: int, image_size: tuple[int, int] | None = None) -> Tensor:
        """Return the constant as a prediction [B,C], or [B,C,H,W] for a dense task."""
        constant = self.constant()
        if image_size is None:
            return constant.expand(batch_size, -1)
        return constant[:, None, None].expand(batch_size, -1, *image_size)
