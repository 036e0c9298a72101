"""The section `log` of a configuration."""

from __future__ import annotations

from pydantic import Field, model_validator

from trainer.config.section import Options, PositiveFloat, PositiveInt, Section


class LogSection(Section):
    """What is shown and written while training."""

    every: PositiveInt = 10
    """Steps from one record of losses and speed to the next."""
    trackers: tuple[str, ...] = ("tensorboard",)
    """Trackers of Accelerate that get the log: `tensorboard`, `wandb`, `mlflow`, `trackio` and
    others."""
    tracker_options: dict[str, Options] = Field(default_factory=dict)
    """For each tracker by name, the arguments that it starts a run with."""
    progress: bool = True
    """Show a progress bar."""
    peak_tflops: PositiveFloat | None = None
    """Peak TFLOP/s of one process's device, for devices that are not known."""

    @model_validator(mode="after")
    def _trackers_once(self) -> LogSection:
        twice = [name for name in self.trackers if self.trackers.count(name) > 1]
        if twice:
            raise ValueError(f"log.trackers: names {twice[0]!r} twice, each is allowed once")
        unused = sorted(set(self.tracker_options) - set(self.trackers))
        if unused:
            raise ValueError(
                f"log.tracker_options: given for {unused[0]!r}, which log.trackers does not name"
            )
        return self
