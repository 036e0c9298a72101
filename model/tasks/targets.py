"""The labels of a batch as losses and metrics take them: scaled and masked, in fp32.

Legend: n tasks of one signature, B batch, C channels, H, W.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from dmtg.plugins import LOSSES, TASK_KINDS
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
        options: The loss options that one of the tasks sets, with the values of all: fp32 [n], or
            [n,C] for an option of each class.
    """

    target: Tensor
    mask: Tensor
    valid: Tensor
    options: Mapping[str, Tensor] = field(default_factory=dict)

    def select(self, rows: Rows) -> Targets:
        """Return the targets of some of the tasks, as views where rows is a slice."""
        return Targets(
            take(self.target, rows),
            take(self.mask, rows),
            take(self.valid, rows),
            {name: take(values, rows) for name, values in self.options.items()},
        )

    def numbers_like(self, values: Tensor) -> dict[str, Tensor]:
        """Return the options of one number for each task, shaped to broadcast over values [n,...].

        They have the shape [n,1,...].
        """
        shape = (-1, *[1] * (values.ndim - 1))
        return {
            name: numbers.view(shape) for name, numbers in self.options.items() if numbers.ndim == 1
        }


class TargetBuilder:
    """Scale and mask the raw labels of the tasks of one signature, in fp32.

    Args:
        specs: The n tasks.
    """

    def __init__(self, specs: Sequence[TaskSpec]) -> None:
        self.specs = tuple(specs)
        self._kind = TASK_KINDS[self.specs[0].kind]()
        self._constants: dict[torch.device, tuple[Tensor, Tensor]] = {}
        self._options: dict[torch.device, dict[str, Tensor]] = {}

    def __call__(self, raw: Tensor | Sequence[Tensor], valid: Tensor) -> Targets:
        """Return the targets of one batch, see `TaskKind.targets`.

        Args:
            raw: Labels as stored: [n,B] of a scalar kind, else for each task [B,C,H,W] of any
                dtype ([B,1,H,W] class ids for dense_classification).
            valid: Which samples have a label, bool [n,B].
        """
        targets = self._kind.targets(self.specs, raw, valid, self._scaled)
        options = self._loss_options(valid.device)
        return replace(targets, options=options) if options else targets

    def _loss_options(self, device: torch.device) -> dict[str, Tensor]:
        """Return the loss options that one of the tasks sets, see `Targets`."""
        if device not in self._options:
            num_classes = self._kind.num_names(self.specs[0])
            options = {}
            for name, option in LOSSES[self.specs[0].loss].options.items():
                values = [spec.loss_options.get(name) for spec in self.specs]
                if any(value is not None for value in values):
                    options[name] = copy_to_device(option.stacked(values, num_classes), device)
            self._options[device] = options
        return self._options[device]

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
