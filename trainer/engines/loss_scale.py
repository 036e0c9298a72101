"""The loss scale of fp16 under ZeRO."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from deepspeed.runtime.base_optimizer import ZeROOptimizer


class LossScale:
    """Scales the loss under ZeRO by the rule of `torch.amp.GradScaler`, whose state it reads.

    Gradients of a scaled loss do not underflow in fp16. The scale is halved after a step whose
    gradient is not finite, and doubled after 2000 good ones in a row.

    With an optimizer that it has not made, DeepSpeed 0.19.8 takes a `GradScaler` for autocast to
    fp16, but clips the scaled gradient, and never updates the scale of a step that it skips. All
    its computations are right for a scale that is set from outside.

    Args:
        optimizer: DeepSpeed's, of any stage.
    """

    GROWTH, BACKOFF, INTERVAL = 2.0, 0.5, 2000

    def __init__(self, optimizer: ZeROOptimizer) -> None:
        self._optimizer = optimizer
        optimizer.torch_autocast_gradscaler = None
        self._good_steps = 0
        self._set(2.0**16)

    def update(self) -> None:
        """Adapt the scale after a step."""
        if self._optimizer.overflow:
            self._good_steps = 0
            self._set(self._scale * self.BACKOFF)
            return
        self._good_steps += 1
        if self._good_steps == self.INTERVAL:
            self._good_steps = 0
            self._set(self._scale * self.GROWTH)

    def get_scale(self) -> float:
        """Return the factor of the loss."""
        return self._scale

    def state_dict(self) -> dict[str, float]:
        """Return the state as `torch.amp.GradScaler` does."""
        return {
            "scale": self._scale,
            "growth_factor": self.GROWTH,
            "backoff_factor": self.BACKOFF,
            "growth_interval": self.INTERVAL,
            "_growth_tracker": self._good_steps,
        }

    def load_state_dict(self, state: Mapping[str, float]) -> None:
        """Restore what `state_dict` returned here or in another engine."""
        self._good_steps = int(state["_growth_tracker"])
        self._set(state["scale"])

    def _set(self, scale: float) -> None:
        self._scale = scale
        self._optimizer.override_loss_scale(scale)
