"""The section `pruning` of a configuration."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, model_validator

from trainer.config.section import Fraction, PositiveInt, Section


class PruningSection(Section):
    """When heads are switched off; `begin` and `end` are fractions of the run.

    The network is compacted to the live heads, and keeps their weights and moments, as soon as the
    fraction `compact` of its heads is off, a branch is empty, or every task has one head.
    """

    threshold: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.05
    begin: Fraction = 0.2
    end: Fraction = 0.8
    every: PositiveInt = 50
    compact: Fraction = 0.2

    @model_validator(mode="after")
    def _ordered(self) -> PruningSection:
        if self.begin > self.end:
            raise ValueError(f"begin {self.begin} must not be after end {self.end}")
        return self
