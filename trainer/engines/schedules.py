"""Learning rate and temperature as pure functions of the step."""

from __future__ import annotations

import math

from trainer.config.grouping import TemperatureSection
from trainer.config.sections import OptimSection


def learning_rate_factor(optim: OptimSection, step: int, num_steps: int) -> float:
    """Return the multiplier of every learning rate at `step`: linear warm-up, then the schedule."""
    if step < optim.warmup:
        return (step + 1) / optim.warmup
    progress = (step - optim.warmup) / max(1, num_steps - optim.warmup)
    if optim.schedule == "cosine":
        return 0.5 * (1.0 + math.cos(math.pi * progress))
    if optim.schedule == "multistep":
        return optim.gamma ** sum(step >= fraction * num_steps for fraction in optim.milestones)
    return 1.0


def temperature(section: TemperatureSection, step: int, num_steps: int) -> float:
    """Return the temperature of the relaxed Categorical at `step` of its `num_steps`."""
    progress = min(1.0, step / max(1, num_steps))
    if section.shape == "exponential":
        return section.start * (section.end / section.start) ** progress
    return section.start + (section.end - section.start) * progress
