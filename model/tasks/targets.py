"""The labels of a batch as losses and metrics take them: scaled and masked, in fp32.

Legend: n tasks of one signature, B batch, C channels, H, W.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from dmtg.plugins import TASK_KINDS
from model.rows import Rows, take
from model.tasks.spec import TaskSpec
from model.transfer import copy_to_device

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
    """Scale and mask the raw labels of the tasks of one signature, in fp32.

    Args:
        specs: The n tasks.
    """

    def __init__(self, specs: Sequence[TaskSpec]) -> None:
        self.specs = tuple(specs)
        self._kind = TASK_KINDS[self.specs[0].kind]()
        self._constants: dict[torch.device, tuple[Tensor, Tensor]] = {}

    def __call__(self, raw: Tensor | Sequence[Tensor], valid: Tensor) -> Targets:
        """Return the targets of one batch, see `TaskKind.targets`.

        Args:
            raw: Labels as stored: [n,B] of a scalar kind, else for each task [B,C,H,W] of any
                dtype ([B,1,H,W] class ids for dense_classification).
            valid: Which samples have a label, bool [n,B].
        """
        return self._kind.targets(self.specs, raw, valid, self._scaled)

    def _scaled(self, values: Tensor) -> Tensor:
        """Return (values - mean) / scale for values [n,B] or [n,B,C,H,W]."""
        # Cached per device: the copies would be in every step.
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
        constants = copy_to_device(torch.tensor(filled, dtype=torch.float32), device)  # [n,C]
        return constants[:, None, :, None, None] if self.specs[0].dense else constants
