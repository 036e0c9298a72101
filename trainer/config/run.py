"""The section `run` of a configuration."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, Field, model_validator

from trainer.config.section import MAX_COUNT, MAX_SECONDS, PositiveInt, Seconds, Section

Precision = Literal["fp32", "tf32", "bf16", "fp16"]


def _window(text: str) -> tuple[int, int]:
    start, end = text.split(":")
    return int(start), int(end)


def _check_window(text: str) -> str:
    if re.fullmatch(r"[0-9]+:[0-9]+", text):
        start, end = _window(text)
        if start < end:
            return text
    raise ValueError(f"found {text!r}; allowed is START:END, two step numbers, as in 100:105")


class RunSection(Section):
    """The folder of a run, its length, and its checkpoints.

    A checkpoint is saved every `checkpoint_every` steps. The `keep_last` newest are kept, and all
    those of steps that are multiples of `keep_every`. With `async_checkpoint` the training
    continues while one is written. After `max_minutes` the run saves and stops, as after a signal;
    the next start continues it.
    `profile: START:END` writes a trace of the steps after START up to END.
    `device: auto` takes GPUs where a launch file asks for them or one is there. Without `precision`
    that of the launch file holds: `fp32`; `tf32`, fp32 with products on tensor cores; `bf16` and
    `fp16`, autocast. `deterministic` takes only algorithms that give the same bits for the same
    input; on the CPU all do (docs/failures.md). `cudnn_benchmark` lets cuDNN try its convolution
    algorithms.
    `overlap_comm` lets ZeRO send gradients beside the backward pass; without it only stage 3 does.
    Ranks wait for each other at most `timeout_seconds`. A process without progress for
    `stall_seconds`, whatever it waits for, ends the run.
    """

    out: Path
    steps: PositiveInt | None = None
    epochs: Annotated[float, Field(gt=0.0, le=MAX_COUNT)] | None = None
    max_minutes: Annotated[float, Field(gt=0.0, le=MAX_SECONDS / 60)] | None = None
    seed: Annotated[int, Field(ge=0, le=2**63 - 1)] = 0
    resume: Literal["never", "auto"] = "never"
    device: Literal["auto", "cuda", "cpu"] = "auto"
    precision: Precision | None = None
    deterministic: bool = False
    cudnn_benchmark: bool = False
    overlap_comm: bool | None = None
    timeout_seconds: Seconds = 600.0
    stall_seconds: Seconds = 1800.0
    checkpoint_every: PositiveInt = 1000
    keep_last: PositiveInt = 2
    keep_every: PositiveInt | None = None
    async_checkpoint: bool = True
    profile: Annotated[str, AfterValidator(_check_window)] | None = None
    profile_ranks: Literal["first", "all"] = "first"

    @property
    def profile_window(self) -> tuple[int, int] | None:
        """Return START and END of `profile`."""
        return None if self.profile is None else _window(self.profile)

    @model_validator(mode="after")
    def _one_length(self) -> RunSection:
        if (self.steps is None) == (self.epochs is None):
            raise ValueError("give exactly one of run.steps and run.epochs")
        return self

    @model_validator(mode="after")
    def _same_algorithms(self) -> RunSection:
        if self.deterministic and self.cudnn_benchmark:
            raise ValueError(
                "give at most one of run.deterministic and run.cudnn_benchmark, which chooses "
                "algorithms by their times: another start may choose others"
            )
        return self

    @model_validator(mode="after")
    def _kept_are_made(self) -> RunSection:
        if self.keep_every is not None and self.keep_every % self.checkpoint_every:
            raise ValueError(
                f"keep_every is {self.keep_every}; must be a multiple of checkpoint_every, "
                f"{self.checkpoint_every}"
            )
        return self

    @model_validator(mode="after")
    def _stall_last(self) -> RunSection:
        if self.stall_seconds <= self.timeout_seconds:
            raise ValueError(
                f"stall_seconds is {self.stall_seconds:g}; must be above timeout_seconds, "
                f"{self.timeout_seconds:g}: a rank that waits for another makes no progress"
            )
        return self
