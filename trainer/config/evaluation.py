"""The section `eval` of a configuration."""

from __future__ import annotations

from trainer.config.section import NonNegativeInt, PositiveInt, Section


class EvalSection(Section):
    """Evaluation on `data.eval_split`; `every: 0` evaluates at the end only."""

    every: NonNegativeInt = 0
    batch_size: PositiveInt = 64
    limit: PositiveInt | None = None
