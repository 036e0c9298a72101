"""What a run knows about the branch of a task: its margin over the others, and its firmness.

Legend: N tasks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from model.grouping.margin import SIGNIFICANT, Margin
from trainer.json_file import with_digits

if TYPE_CHECKING:
    from torch import Tensor

    from model.grouping.paired_losses import PairedLosses

FIRM = 0.75  # agreement with resampled steps from which groups are called firm
_DIGITS = 6


@dataclass(frozen=True)
class TaskEvidence:
    """The evidence for the branch of a task; None where nothing is known.

    Attributes:
        margin: By how much the task's loss on its branch is below that on the best other one, on
            the same batches, in percent of the latter; below zero the other one is better. None,
            too, if that loss is not above zero.
        standard_error: Of the margin, in percent.
        significant: Whether the branch is better by more than three standard errors.
        firmness: How much of the task's group is the same over resampled steps, from 0 to 1.
    """

    margin: float | None = None
    standard_error: float | None = None
    significant: bool | None = None
    firmness: float | None = None

    @property
    def known(self) -> bool:
        """Whether anything is known."""
        return self.significant is not None or self.firmness is not None

    @property
    def worse(self) -> bool:
        """Whether the best other branch is better by more than three standard errors."""
        if self.margin is None or self.standard_error is None:
            return False
        return self.margin < -SIGNIFICANT * self.standard_error

    def to_json(self) -> dict[str, Any]:
        """Return JSON values, of which `from_json` makes the same again."""
        return {
            "margin": self.margin,
            "standard_error": self.standard_error,
            "significant": self.significant,
            "firmness": self.firmness,
        }

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> TaskEvidence:
        """Return the evidence of JSON values.

        Raises:
            ValueError, TypeError: They are not those of `to_json`.
        """
        numbers = (
            None if values.get(name) is None else float(values[name])
            for name in ("margin", "standard_error", "firmness")
        )
        margin, standard_error, firmness = numbers
        significant = values.get("significant")
        if significant not in (None, True, False):
            raise ValueError(f"significant: found {significant!r}; allowed: true, false or null")
        return cls(margin, standard_error, significant, firmness)


def is_firm(agreement: float) -> bool:
    """Return whether groups of this agreement with resampled steps are called firm."""
    return round(agreement, 2) >= FIRM


def gather_evidence(
    branches: Sequence[int], paired_losses: PairedLosses, firmness: Tensor | None
) -> tuple[list[TaskEvidence], float | None]:
    """Return the evidence for the branches of N tasks, and the agreement with resampled groups.

    Args:
        branches: The branch of every task.
        paired_losses: Of the learner.
        firmness: Of the learner [N+1].
    """
    firm: list[float | None] = [None] * (len(branches) + 1)
    if firmness is not None:
        firm = [_rounded(value) for value in firmness.tolist()]
    margins = paired_losses.margins(branches)
    evidence = [_evidence(*row) for row in zip(margins, firm[:-1], strict=True)]
    return evidence, firm[-1]


def _evidence(margin: Margin | None, firmness: float | None) -> TaskEvidence:
    if margin is None:
        return TaskEvidence(firmness=firmness)
    percent, error = (
        None if part is None else _rounded(100 * part)
        for part in (margin.relative, margin.relative_error)
    )
    return TaskEvidence(percent, error, margin.significant, firmness)


def _rounded(value: float) -> float:
    return float(with_digits(value, _DIGITS))
