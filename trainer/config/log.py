"""The section `log` of a configuration."""

from __future__ import annotations

from pydantic import Field, model_validator

from trainer.config.section import Options, PositiveFloat, PositiveInt, Section


class LogSection(Section):
    """What is shown and written while training.

    `trackers` are those of `accelerate.tracking`: `tensorboard`, `wandb`, `mlflow`, `trackio` and
    others; `tracker_options` holds for each the arguments that it starts a run with. A resumed run
    continues the same tracker runs. `peak_tflops` is the peak rate of one process's device, for
    devices that are not known.
    """

    every: PositiveInt = 10
    trackers: tuple[str, ...] = ("tensorboard",)
    tracker_options: dict[str, Options] = Field(default_factory=dict)
    progress: bool = True
    peak_tflops: PositiveFloat | None = None

    @model_validator(mode="after")
    def _trackers_once(self) -> LogSection:
        twice = [name for name in self.trackers if self.trackers.count(name) > 1]
        if twice:
            raise ValueError(f"trackers names {twice[0]!r} twice, each is allowed once")
        unused = sorted(set(self.tracker_options) - set(self.trackers))
        if unused:
            raise ValueError(f"tracker_options is given for {unused[0]!r}, which trackers lacks")
        return self
