"""The section `finetune` of a configuration."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from trainer.config.section import MAX_COUNT, NonNegativeInt, PositiveFloat, Section


class FinetuneSection(Section):
    """Training of the learned groups after the steps of `run`; by default there is none.

    `one_by_one` trains each group separately for `steps` or `epochs`, `together` trains all of them
    at once. Optimizer and schedule start anew, from `lr` or else from `optim.lr`; the ratio of
    `optim.heads_lr` to it is kept.
    """

    steps: NonNegativeInt = 0
    epochs: Annotated[float, Field(ge=0.0, le=MAX_COUNT)] = 0.0
    order: Literal["one_by_one", "together"] = "one_by_one"
    lr: PositiveFloat | None = None
    freeze_trunk: bool = True

    @model_validator(mode="after")
    def _consistent(self) -> FinetuneSection:
        if self.steps and self.epochs:
            raise ValueError("give at most one of finetune.steps and finetune.epochs")
        if self.order == "one_by_one" and not self.freeze_trunk:
            raise ValueError(
                "freeze_trunk is false, which needs order 'together': with 'one_by_one' the trunk "
                "would change under the groups that are done"
            )
        return self
