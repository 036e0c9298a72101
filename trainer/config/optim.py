"""The section `optim` of a configuration, and the learning-rate schedules."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal, Union

from pydantic import Field, field_validator, model_validator

from trainer.config.section import Fraction, NonNegativeInt, PositiveFloat, PositiveInt, Section


class ScheduleSection(Section):
    """A learning-rate schedule after the warm-up; `name` chooses it."""

    noun: ClassVar[str | None] = "schedule"


class ConstantSchedule(ScheduleSection):
    """Constant learning rates."""

    name: Literal["constant"] = "constant"
    """Chooses the schedule."""


class CosineSchedule(ScheduleSection):
    """Half a cosine from the learning rates to zero at the end of the run."""

    name: Literal["cosine"] = "cosine"
    """Chooses the schedule."""


class MultistepSchedule(ScheduleSection):
    """Multiply the rates by a factor at given times."""

    name: Literal["multistep"] = "multistep"
    """Chooses the schedule."""
    milestones: Annotated[tuple[Fraction, ...], Field(min_length=1)]
    """Fractions of the run at which the rates are multiplied."""
    gamma: PositiveFloat = 0.5
    """The factor."""


class PlateauSchedule(ScheduleSection):
    """Multiply the rates by a factor when the train loss stops falling."""

    name: Literal["plateau"] = "plateau"
    """Chooses the schedule."""
    gamma: PositiveFloat = 0.5
    """The factor, which must be below 1."""
    patience: NonNegativeInt = 3
    """Number of epochs without progress after which one more lowers the rates."""
    threshold: Fraction = 0.1
    """Fraction of the train loss by which it must fall to count as progress."""
    min_lr: Annotated[float, Field(ge=0.0)] = 3e-5
    """The rates do not fall below this one; at most `optim.lr`."""


Schedule = Union[ConstantSchedule, CosineSchedule, MultistepSchedule, PlateauSchedule]  # noqa: UP007


class OptimSection(Section):
    """Optimizer, learning rates and gradient accumulation."""

    name: Literal["adam", "adamw"] = "adamw"
    """The optimizer."""
    lr: PositiveFloat = 1e-3
    """Learning rate of trunk and branches."""
    heads_lr: PositiveFloat | None = None
    """Learning rate of the heads; null takes `optim.lr`."""
    weight_decay: Annotated[float, Field(ge=0.0)] = 0.0
    """Weight decay of all weights but biases and normalisation parameters."""
    betas: tuple[Fraction, Fraction] = (0.9, 0.999)
    """Decay rates of Adam's averages of the gradient and of its square."""
    schedule: Schedule = Field(default=CosineSchedule(), discriminator="name")
    """How the learning rates change after the warm-up; `NAME` stands for `{name: NAME}`."""
    warmup_steps: NonNegativeInt = 0
    """Steps in which the learning rates rise linearly from zero."""
    max_grad_norm: PositiveFloat | None = None
    """Larger gradients are scaled down to this norm; null does not clip."""
    skip_nonfinite: NonNegativeInt = 0
    """Number of steps of the run that may be skipped because a loss or gradient is not finite; one
    more ends the run."""
    gradient_accumulation_steps: PositiveInt = 1
    """Micro-batches into which each process divides its part of the global batch."""

    @field_validator("schedule", mode="before")
    @classmethod
    def _shorthand(cls, value: Any) -> Any:  # noqa: ANN401 - whatever the file holds
        return {"name": value} if isinstance(value, str) else value

    @model_validator(mode="after")
    def _plateau_falls(self) -> OptimSection:
        schedule = self.schedule
        if isinstance(schedule, PlateauSchedule) and (
            schedule.gamma >= 1.0 or schedule.min_lr > self.lr
        ):
            raise ValueError(
                f"optim.schedule.gamma: found {schedule.gamma}, and min_lr {schedule.min_lr}; for "
                f"schedule 'plateau' they must be below 1 and at most optim.lr, {self.lr}"
            )
        return self
