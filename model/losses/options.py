"""Options of losses: numbers in which the tasks of one stack of heads may differ.

Legend: n tasks of one signature, C classes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from dmtg.names import shortened

AUTO: Literal["auto"] = "auto"
OptionValue = float | tuple[float, ...] | Literal["auto"]


@dataclass(frozen=True)
class LossOption:
    """An option of a loss: one number for each task, or one for each class of a task.

    Attributes:
        default: The number of a task that does not set the option.
        allowed: The numbers that are allowed, for messages.
        allows: Whether a finite number is allowed.
        per_class: Whether there is a number for each class.
        from_counts: From the number of training labels of each class [C] to the value that `auto`
            stands for; None for an option without `auto`.
    """

    default: float
    allowed: str
    allows: Callable[[float], bool]
    per_class: bool = False
    from_counts: Callable[[Sequence[int]], float | tuple[float, ...]] | None = None

    def value(self, place: str, given: object, classes: Sequence[str]) -> OptionValue:
        """Return a value as a task keeps it: a float, a float for each class, or `auto`.

        Args:
            place: The task and the option, for the message.
            given: What the configuration holds. Of the classes it may be a list, or a mapping
                from some of the names.
            classes: Names of the task's classes.

        Raises:
            ValueError: It is not allowed.
        """
        if given == AUTO and self.from_counts is not None:
            return AUTO
        if isinstance(given, int | float) and not self.per_class and self._is_number(given):
            return float(given)
        values = given
        if isinstance(given, Mapping) and given.keys() <= set(classes):
            values = [given.get(name, self.default) for name in classes]
        if self.per_class and isinstance(values, list | tuple) and len(values) == len(classes):
            numbers = [value for value in values if self._is_number(value)]
            if len(numbers) == len(classes):
                return tuple(map(float, numbers))
        raise ValueError(f"{place} is {shortened(repr(given))}, must be {self._rule(classes)}")

    def _is_number(self, value: object) -> bool:
        if isinstance(value, bool) or not isinstance(value, int | float):
            return False
        return math.isfinite(value) and self.allows(value)

    def _rule(self, classes: Sequence[str]) -> str:
        auto = "" if self.from_counts is None else f", or {AUTO}"
        if not self.per_class:
            return f"a number {self.allowed}{auto}"
        return (
            f"a list of {len(classes)} numbers {self.allowed}, or a mapping from names of classes "
            f"to such numbers{auto}"
        )

    def stacked(self, values: Sequence[OptionValue | None], num_classes: int) -> Tensor:
        """Return the values of n tasks, fp32 [n] or [n,C].

        Args:
            values: None for a task that does not set the option.
            num_classes: C.
        """
        assert AUTO not in values, "a run replaces `auto` before its network is built"
        missing = (self.default,) * num_classes if self.per_class else self.default
        return torch.tensor([missing if value is None else value for value in values])


def positive_weight(counts: Sequence[int]) -> float:
    """Return the number of negatives for each positive; 1 if a class has no label."""
    negatives, positives = counts
    return negatives / positives if negatives and positives else 1.0


def balanced_weights(counts: Sequence[int]) -> tuple[float, ...]:
    """Return weights that give all classes with labels the same sum, and labels the mean 1.

    A class without a label has the weight 1.
    """
    present = sum(count > 0 for count in counts)
    return tuple(sum(counts) / (present * count) if count else 1.0 for count in counts)


LABEL_SMOOTHING = LossOption(0.0, "from 0 to below 1", lambda value: 0 <= value < 1)
POS_WEIGHT = LossOption(1.0, "above 0", lambda value: value > 0, from_counts=positive_weight)
CLASS_WEIGHTS = LossOption(
    1.0,
    "of at least 0",
    lambda value: value >= 0,
    per_class=True,
    from_counts=balanced_weights,
)
