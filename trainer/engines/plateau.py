"""Lowers the learning rate where the train loss stops falling.

Legend: N tasks.
"""

from __future__ import annotations

import torch
from torch import Tensor

from trainer.config.optim import PlateauSchedule


class Plateau:
    """`torch.optim.lr_scheduler.ReduceLROnPlateau` (mode min, threshold_mode rel) over epochs.

    It sees the mean over an epoch of the objective of all ranks.

    Args:
        section: `gamma`, `patience`, `threshold` and `min_lr`.
        lr: Learning rate that `min_lr` is a share of.
        steps_per_epoch: Steps of an epoch.
        device: Where the objective lies.

    Attributes:
        factor: Multiplier of every learning rate.
    """

    def __init__(
        self, section: PlateauSchedule, lr: float, steps_per_epoch: int, device: torch.device
    ) -> None:
        self.factor = 1.0
        self._section = section
        self._floor = min(1.0, section.min_lr / lr)
        self._steps = steps_per_epoch
        self._best: float | None = None
        self._bad_epochs = 0
        self._sum = torch.zeros((), dtype=torch.float64, device=device)

    def watch(self, step: int, objective: Tensor) -> None:
        """Take note of the objective [N] of the step that made `step` of them in this phase."""
        self._sum += objective.sum(dtype=torch.float64)
        if step % self._steps == 0:
            self.end_epoch(float(self._sum) / self._steps)
            self._sum.zero_()

    def end_epoch(self, loss: float) -> None:
        """Take note of an epoch's mean loss."""
        if self._best is None or loss < self._best * (1.0 - self._section.threshold):
            self._best, self._bad_epochs = loss, 0
            return
        self._bad_epochs += 1
        if self._bad_epochs > self._section.patience:
            self.factor = max(self.factor * self._section.gamma, self._floor)
            self._bad_epochs = 0

    def state(self) -> dict[str, float | None]:
        """All that a checkpoint must hold."""
        return {
            "factor": self.factor,
            "best": self._best,
            "bad_epochs": self._bad_epochs,
            "sum": float(self._sum),
        }

    def load(self, state: dict[str, float | None]) -> None:
        """The inverse of `state`."""
        self.factor = state["factor"] or 1.0
        self._best = state["best"]
        self._bad_epochs = int(state["bad_epochs"] or 0)
        self._sum.fill_(state["sum"] or 0.0)
