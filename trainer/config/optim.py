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


class CosineSchedule(ScheduleSection):
    """Half a cosine from the learning rates to zero at the end of the run."""

    name: Literal["cosine"] = "cosine"


class MultistepSchedule(ScheduleSection):
    """Multiply the rates by `gamma` at each of the `milestones`, which are fractions of the run."""

    name: Literal["multistep"] = "multistep"
    milestones: Annotated[tuple[Fraction, ...], Field(min_length=1)]
    gamma: PositiveFloat = 0.5


class PlateauSchedule(ScheduleSection):
    """Multiply the rates by `gamma` when the train loss stops falling.

    That is when it has not fallen by the fraction `threshold` for more than `patience` epochs. The
    rates do not fall below `min_lr`.
    """

    name: Literal["plateau"] = "plateau"
    gamma: PositiveFloat = 0.5
    patience: NonNegativeInt = 3
    threshold: Fraction = 0.1
    min_lr: Annotated[float, Field(ge=0.0)] = 3e-5


Schedule = Union[ConstantSchedule, CosineSchedule, MultistepSchedule, PlateauSchedule]  # noqa: UP007


class OptimSection(Section):
    """Optimizer, learning rates and gradient accumulation.

    `schedule: NAME` stands for `schedule: {name: NAME}`. The rates rise linearly in the first
    `warmup_steps`. At most `skip_nonfinite` steps of the run whose losses or gradients are not
    finite are skipped: weights, moments and groups stay as they are, the schedule and the data go
    on. One more ends the run.
    """

    name: Literal["adam", "adamw"] = "adamw"
    lr: PositiveFloat = 1e-3
    heads_lr: PositiveFloat | None = None
    weight_decay: Annotated[float, Field(ge=0.0)] = 0.0
    betas: tuple[Fraction, Fraction] = (0.9, 0.999)
    schedule: Schedule = Field(default=CosineSchedule(), discriminator="name")
    warmup_steps: NonNegativeInt = 0
    max_grad_norm: PositiveFloat | None = None
    skip_nonfinite: NonNegativeInt = 0
    gradient_accumulation_steps: PositiveInt = 1

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
                f"gamma is {schedule.gamma}, min_lr is {schedule.min_lr}; for schedule 'plateau' "
                f"they must be below 1 and at most lr, {self.lr}"
            )
        return self
