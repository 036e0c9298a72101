"""The section `pruning` of a configuration."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, model_validator

from trainer.config.section import Fraction, PositiveInt, Section


class PruningSection(Section):
    """When heads are switched off, and when the network is made smaller."""

    threshold: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.05
    """Heads with a lower probability are switched off; must be below 1 / `model.branches`."""
    begin: Fraction = 0.2
    """Fraction of the run after which heads may be switched off."""
    end: Fraction = 0.8
    """Fraction of the run after which every task has one head."""
    every: PositiveInt = 50
    """Steps from one decision to the next."""
    compact: Fraction = 0.2
    """Fraction of heads that are off at which the network is compacted to its live heads; an empty
    branch or one head for each task does so, too."""

    @model_validator(mode="after")
    def _ordered(self) -> PruningSection:
        if self.begin > self.end:
            raise ValueError(
                f"pruning.begin: found {self.begin}; must not be after pruning.end, {self.end}"
            )
        return self
