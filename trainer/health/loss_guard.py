"""Check the losses: stop a run that diverged, or leave out a few steps that are not finite.

Legend: N tasks, K branches.
"""

from __future__ import annotations

import logging
import socket

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor

from trainer.errors import NonFiniteLossError

logger = logging.getLogger(__name__)

_MOST_NAMED = 4  # ranks in a message


class LossGuard:
    """Finds losses that are not finite, with the same result on every rank.

    Without `allowed` it keeps the first step whose losses were not finite on the device, without
    synchronising, until `check`.

    Args:
        tasks: Names of the N tasks.
        accelerator: Gathers over the ranks.
        allowed: Steps of the run that may be left out.
        total: Steps that were.

    Attributes:
        allowed: See the argument.
        total: Steps that were left out so far.
        left_out: Whether the last step was.
    """

    def __init__(
        self, tasks: tuple[str, ...], accelerator: Accelerator, allowed: int = 0, total: int = 0
    ) -> None:
        self.allowed = allowed
        self.total = total
        self.left_out = False
        self._tasks = tasks
        self._accelerator = accelerator
        self._bad_step = torch.full((), -1, device=accelerator.device)
        self._bad_tasks = torch.zeros(len(tasks), dtype=torch.bool, device=accelerator.device)
        self._local_bad = self._bad_tasks

    def propagate_nonfinite(self, objective: Tensor, losses: Tensor) -> Tensor:
        """Return the objective of a micro-batch, NaN with NaN gradients if a loss is not finite.

        All ranks then have such gradients, and every engine leaves weights and moments unchanged.

        Args:
            objective: What is differentiated.
            losses: Of this rank, of all heads.
        """
        if not self.allowed:
            return objective
        return objective * torch.where(losses.detach().isfinite().all(), 1.0, torch.nan)

    def update(self, step: int, losses: Tensor, local_losses: Tensor) -> None:
        """Add the losses [N,K] of a step, over all ranks and of this rank."""
        self.left_out = False
        bad = ~losses.isfinite().all(dim=1)
        first = (self._bad_step < 0) & bad.any()
        self._bad_step = torch.where(first, step, self._bad_step)
        self._bad_tasks = torch.where(first, bad, self._bad_tasks)
        local_bad = ~local_losses.isfinite().all(dim=1)
        self._local_bad = torch.where(first, local_bad, self._local_bad)

    def check(self) -> None:
        """Raise if a loss was not finite; every rank must call it.

        Raises:
            NonFiniteLossError: On every rank, naming step, tasks and ranks.
        """
        step = int(self._bad_step)
        if step >= 0:
            raise NonFiniteLossError(
                f"the loss became NaN or infinite in step {step}: {self._named(self._bad_tasks)}"
                f"{self._ranks(self._local_bad)}"
            )

    def leave_out(self, step: int, losses: Tensor, local_losses: Tensor) -> None:
        """Count a step that the engine left out; every rank must call it.

        Args:
            losses: Over all ranks [N,K].
            local_losses: Of this rank [N,K].

        Raises:
            NonFiniteLossError: On every rank: it is one more than `allowed`.
        """
        self.left_out = True
        bad, local_bad = (~value.isfinite().all(dim=1) for value in (losses, local_losses))
        cause = "the loss" if bool(bad.any()) else "a gradient"
        names = f": {self._named(bad)}{self._ranks(local_bad)}" if bool(bad.any()) else ""
        message = f"{cause} became NaN or infinite in step {step}{names}"
        if self.total == self.allowed:
            limit = f"; optim.skip_nonfinite allows {self.allowed} such steps in a run"
            raise NonFiniteLossError(message + (limit if self.allowed else ""))
        self.total += 1
        if self._accelerator.is_main_process:
            logger.warning("%s; left out, %d of %d", message, self.total, self.allowed)

    def record(self) -> dict[str, int]:
        """Return the entries of a record of `metrics.jsonl`."""
        return {"skipped": self.total} if self.allowed else {}

    def _named(self, flags: Tensor) -> list[str]:
        return [name for name, bad in zip(self._tasks, flags.tolist(), strict=True) if bad]

    def _ranks(self, local_bad: Tensor) -> str:
        """Return which ranks it began on, for a message; a collective call."""
        num_ranks = self._accelerator.num_processes
        if num_ranks == 1:
            return ""
        hosts = gather_object([socket.gethostname() if bool(local_bad.any()) else None])
        named = [f"rank {rank} ({host})" for rank, host in enumerate(hosts) if host is not None]
        if not named or len(named) == num_ranks:
            return f" on all {num_ranks} ranks"
        more = f" and {len(named) - _MOST_NAMED} more" if len(named) > _MOST_NAMED else ""
        return f" on {', '.join(named[:_MOST_NAMED])}{more} of {num_ranks} ranks"
