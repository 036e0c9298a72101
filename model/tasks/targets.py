"""The labels of a batch as losses and metrics take them: scaled and masked, in fp32.

Legend: n tasks of one signature, B batch, C channels, H, W.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from model.rows import Rows, take
from model.tasks.spec import TaskSpec

IGNORED = -100


@dataclass(frozen=True)
class Targets:
    """The labels of the n tasks of one signature for one batch.

    Attributes:
        target: Scaled values [n,B] or [n,B,C,H,W], zero where masked; or class ids [n,B] or
            [n,B,H,W], `IGNORED` where masked.
        mask: Which values count, bool [n,B] or [n,B,H,W].
        valid: Which samples have a label, bool [n,B].
    """

    target: Tensor
    mask: Tensor
    valid: Tensor

    def select(self, rows: Rows) -> Targets:
        """Return the targets of some of the tasks, as views where rows is a slice."""
        return Targets(take(self.target, rows), take(self.mask, rows), take(self.valid, rows))


class TargetBuilder:
    """Scales and masks the raw labels of the tasks of one signature, in fp32."""

    def __init__(self, specs: Sequence[TaskSpec]) -> None:
        self.specs = tuple(specs)
        self._constants: dict[torch.device, tuple[Tensor, Tensor]] = {}

    def __call__(self, raw: Tensor | Sequence[Tensor], valid: Tensor) -> Targets:
        """Return the targets of one batch.

        A class id that no output stands for counts as not labelled.

        Args:
            raw: Labels as stored: [n,B] of a scalar kind, else for each task [B,C,H,W] of any
                dtype ([B,1,H,W] class ids for dense_classification).
            valid: Which samples have a label, bool [n,B].
        """
        kind, _, loss = self.specs[0].signature
        if kind == "dense_classification":
            return self._class_maps(torch.stack([labels[:, 0].long() for labels in raw]), valid)
        if kind == "dense_regression":
            values = torch.stack([labels.to(torch.float32) for labels in raw])
            return self._value_maps(values, valid)
        assert isinstance(raw, Tensor)
        if loss == "cross_entropy":
            return Targets(torch.where(valid, raw, IGNORED).long(), valid, valid)
        return Targets(torch.where(valid, self._scaled(raw), 0.0), valid, valid)

    def _class_maps(self, ids: Tensor, valid: Tensor) -> Targets:
        mask = valid[:, :, None, None] & (ids >= 0) & (ids < self.specs[0].outputs)
        for row, spec in enumerate(self.specs):
            if spec.ignore_index is not None:
                mask[row] &= ids[row] != spec.ignore_index
        return Targets(torch.where(mask, ids, IGNORED), mask, valid)

    def _value_maps(self, values: Tensor, valid: Tensor) -> Targets:
        mask = valid[:, :, None, None].expand(-1, -1, *values.shape[-2:]).clone()
        for row, spec in enumerate(self.specs):
            if spec.valid_below is not None:
                mask[row] &= (values[row] < spec.valid_below).all(dim=1)
        return Targets(torch.where(mask[:, :, None], self._scaled(values), 0.0), mask, valid)

    def _scaled(self, values: Tensor) -> Tensor:
        """Return (values - mean) / scale for values [n,B] or [n,B,C,H,W]."""
        # Kept per device: copying them there in every step would stall the device.
        if values.device not in self._constants:
            self._constants[values.device] = (
                self._per_channel([spec.mean for spec in self.specs], values.device),
                self._per_channel([spec.scale for spec in self.specs], values.device),
            )
        mean, scale = self._constants[values.device]
        return (values - mean) / scale

    def _per_channel(self, rows: list[tuple[float, ...]], device: torch.device) -> Tensor:
        """Return one row per task, shaped to broadcast over values [n,B] or [n,B,C,H,W]."""
        channels = self.specs[0].channels
        filled = [row if len(row) == channels else row * channels for row in rows]
        constants = torch.tensor(filled, dtype=torch.float32, device=device)  # [n,C]
        return constants[:, None, :, None, None] if self.specs[0].dense else constants
