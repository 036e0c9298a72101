"""The section `log` of a configuration."""

from __future__ import annotations

from trainer.config.section import PositiveFloat, PositiveInt, Section


class LogSection(Section):
    """What is shown and written while training.

    `peak_tflops` is the peak rate of one process's device, for devices that are not known.
    """

    every: PositiveInt = 10
    tensorboard: bool = True
    progress: bool = True
    peak_tflops: PositiveFloat | None = None
