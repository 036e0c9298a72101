"""A vector that Adam updates outside of the engine: one number for each task.

Legend: N tasks.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from trainer.engines.optim import MOMENTS


class AdamVector:
    """Numbers in fp32, zero at first, the same on every rank.

    Args:
        like: A tensor [N] on the device of the numbers.
        options: Keywords of `torch.optim.Adam`.
    """

    def __init__(self, like: Tensor, **options: Any) -> None:  # noqa: ANN401
        self._parameter = nn.Parameter(torch.zeros_like(like, dtype=torch.float32))
        self._optimizer = torch.optim.Adam([self._parameter], **options)
        self._updates = 0

    @property
    def values(self) -> Tensor:
        """The numbers [N], without a gradient."""
        return self._parameter.detach()

    def step(self, gradient: Tensor, lr: float | None = None) -> None:
        """Make one step of Adam.

        Args:
            gradient: [N].
            lr: Learning rate; None for that of the options.
        """
        if lr is not None:
            self._optimizer.param_groups[0]["lr"] = lr
        self._parameter.grad = gradient
        self._optimizer.step()
        self._updates += 1

    def clamp(self, bound: float) -> None:
        """Limit all numbers to plus or minus `bound`."""
        self._parameter.data.clamp_(-bound, bound)

    def tensors(self) -> dict[str, Tensor]:
        """Return the numbers, Adam's moments and the number of updates."""
        state = self._optimizer.state.get(self._parameter, {})
        moments = {name: state.get(name, torch.zeros_like(self.values)) for name in MOMENTS}
        return {"values": self.values, "updates": torch.tensor(self._updates), **moments}

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Restore what `tensors` returned."""
        self._parameter.data.copy_(tensors["values"])
        self._updates = int(tensors["updates"])
        if self._updates:
            moments = {name: tensors[name].to(self.values.device, copy=True) for name in MOMENTS}
            step = torch.tensor(float(self._updates))
            self._optimizer.state[self._parameter] = {"step": step, **moments}
