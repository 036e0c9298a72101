"""The section `eval` of a configuration."""

from __future__ import annotations

from trainer.config.section import NonNegativeInt, PositiveInt, Section


class EvalSection(Section):
    """Evaluation on `data.eval_split`."""

    every: NonNegativeInt = 0
    """Steps from one evaluation to the next; 0 evaluates at the end only."""
    batch_size: PositiveInt = 64
    """Samples of each process in one forward pass of the evaluation."""
    limit: PositiveInt | None = None
    """Samples to evaluate at most; null takes the whole split."""
