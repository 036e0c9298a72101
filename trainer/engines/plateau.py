"""Lower the learning rate when the training loss has stopped falling.

Legend: N tasks.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import ReduceLROnPlateau

from trainer.config.optim import PlateauSchedule


class Plateau:
    """`ReduceLROnPlateau` (mode `min`, threshold_mode `rel`) over the epochs of a phase.

    It receives the mean over an epoch of the objective of all ranks. An optimizer of one parameter,
    whose learning rate starts at 1, holds the factor for all parameter groups of the run.

    Args:
        section: `gamma`, `patience`, `threshold` and `min_lr`.
        lr: Learning rate that `min_lr` is relative to.
        steps_per_epoch: Steps of an epoch.
        device: Device of the objective.
    """

    def __init__(
        self, section: PlateauSchedule, lr: float, steps_per_epoch: int, device: torch.device
    ) -> None:
        optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(()))], lr=1.0)
        self._group = optimizer.param_groups[0]
        self._scheduler = ReduceLROnPlateau(
            optimizer,
            mode="min",
            factor=section.gamma,
            patience=section.patience,
            threshold=section.threshold,
            threshold_mode="rel",
            min_lr=min(1.0, section.min_lr / lr),
            eps=0.0,
        )
        self._steps = steps_per_epoch
        self._sum = torch.zeros((), dtype=torch.float64, device=device)

    @property
    def factor(self) -> float:
        """Multiplier of every learning rate."""
        return float(self._group["lr"])

    def update(self, step: int, objective: Tensor) -> None:
        """Add the objective [N] of a step.

        Args:
            step: Steps done in this phase, this one included.
            objective: Objective of each task over all ranks.
        """
        self._sum += objective.sum(dtype=torch.float64)
        if step % self._steps == 0:
            self.end_epoch(float(self._sum) / self._steps)
            self._sum.zero_()

    def end_epoch(self, loss: float) -> None:
        """Take the mean loss of an epoch, and lower the factor if it has stopped falling."""
        self._scheduler.step(loss)

    def state(self) -> dict[str, float | None]:
        """Return all that a checkpoint must hold; `best` is None before the first epoch."""
        best = self._scheduler.best
        return {
            "factor": self.factor,
            "best": best if math.isfinite(best) else None,
            "bad_epochs": self._scheduler.num_bad_epochs,
            "sum": float(self._sum),
        }

    def load(self, state: dict[str, float | None]) -> None:
        """Restore what `state` returned."""
        best = state["best"]
        self._group["lr"] = state["factor"] or 1.0
        self._scheduler.best = math.inf if best is None else best
        self._scheduler.num_bad_epochs = int(state["bad_epochs"] or 0)
        self._sum.fill_(state["sum"] or 0.0)
