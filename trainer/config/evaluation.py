"""The section `eval` of a configuration."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from trainer.config.section import PositiveInt, Section


class EvalSection(Section):
    """Evaluation on `data.eval_split`; `every: 0` evaluates at the end only."""

    every: Annotated[int, Field(ge=0)] = 0
    batch_size: PositiveInt = 64
    limit: PositiveInt | None = None
