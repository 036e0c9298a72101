"""The learning rate as a pure function of the step."""

from __future__ import annotations

import math

from trainer.config.optim import CosineSchedule, MultistepSchedule, OptimSection


def learning_rate_factor(optim: OptimSection, step: int, num_steps: int) -> float:
    """Return the multiplier of every learning rate at `step`: linear warm-up, then the schedule."""
    warmup, schedule = optim.warmup_steps, optim.schedule
    if step < warmup:
        return (step + 1) / warmup
    if isinstance(schedule, CosineSchedule):
        progress = (step - warmup) / max(1, num_steps - warmup)
        return 0.5 * (1.0 + math.cos(math.pi * progress))
    if isinstance(schedule, MultistepSchedule):
        passed = sum(step >= milestone * num_steps for milestone in schedule.milestones)
        return schedule.gamma**passed
    return 1.0
