"""The section `finetune` of a configuration."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from trainer.config.section import MAX_COUNT, NonNegativeInt, PositiveFloat, Section


class FinetuneSection(Section):
    """Training of the learned groups after the steps of `run`; by default there is none.

    Optimizer and schedule start anew.
    """

    steps: NonNegativeInt = 0
    """Length of each phase in steps; give at most one of this and `finetune.epochs`."""
    epochs: Annotated[float, Field(ge=0.0, le=MAX_COUNT)] = 0.0
    """Length of each phase in passes over the train split."""
    order: Literal["one_by_one", "together"] = "one_by_one"
    """`one_by_one` trains each group in a phase of its own, `together` all of them in one."""
    lr: PositiveFloat | None = None
    """Learning rate, of which `optim.heads_lr` keeps its ratio to `optim.lr`; null takes
    `optim.lr`."""
    freeze_trunk: bool = True
    """Keep the trunk as it is; `one_by_one` needs this."""

    @model_validator(mode="after")
    def _consistent(self) -> FinetuneSection:
        if self.steps and self.epochs:
            raise ValueError("give at most one of finetune.steps and finetune.epochs")
        if self.order == "one_by_one" and not self.freeze_trunk:
            raise ValueError(
                "finetune.freeze_trunk: found false, which needs finetune.order 'together': with "
                "'one_by_one' the trunk would change under the groups that are done"
            )
        return self
