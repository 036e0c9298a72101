"""The margin of a task's branch over the best other one."""

from __future__ import annotations

from dataclasses import dataclass

SIGNIFICANT = 3.0  # standard errors from which a difference is no chance


@dataclass(frozen=True)
class Margin:
    """How much better a task's head is than the best of its other heads, in the task's loss.

    Attributes:
        mean: Mean difference of the losses on the same batches; above zero the head is better.
        standard_error: Of this mean.
        other_loss: Mean loss of the other head on these batches.
    """

    mean: float
    standard_error: float
    other_loss: float

    @property
    def significant(self) -> bool:
        """Whether the head is better beyond chance."""
        return self.mean > SIGNIFICANT * self.standard_error

    @property
    def relative(self) -> float | None:
        """The mean as a fraction of the other head's loss; None if that is not above zero."""
        return self.mean / self.other_loss if self.other_loss > 0 else None

    @property
    def relative_error(self) -> float | None:
        """The standard error as such a fraction."""
        return self.standard_error / self.other_loss if self.other_loss > 0 else None
