"""The section `run` of a configuration."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, Field, model_validator
from pydantic_core import PydanticCustomError

from trainer.config.allowed import Words
from trainer.config.section import MAX_COUNT, MAX_SECONDS, PositiveInt, Seconds, Section

Precision = Literal["fp32", "tf32", "bf16", "fp16"]


def _window(text: str) -> tuple[int, int]:
    start, end = text.split(":")
    return int(start), int(end)


def _check_window(text: str) -> str:
    if re.fullmatch(r"[0-9]{1,12}:[0-9]{1,12}", text):
        start, end = _window(text)
        if start < end:
            return text
    raise PydanticCustomError("window", "no window of steps")


_WINDOW = Words("START:END, two step numbers of which the second is larger, such as 100:105")


class RunSection(Section):
    """The folder of a run, its length, and its checkpoints."""

    out: Path
    """The folder of the run, which gets everything that the run writes."""
    steps: PositiveInt | None = None
    """Length of the run in optimizer steps; give either this or `run.epochs`."""
    epochs: Annotated[float, Field(gt=0.0, le=MAX_COUNT)] | None = None
    """Length of the run in passes over the train split; give either this or `run.steps`."""
    max_minutes: Annotated[float, Field(gt=0.0, le=MAX_SECONDS / 60)] | None = None
    """After this time the run saves and stops, and the next start continues it."""
    seed: Annotated[int, Field(ge=0, le=2**63 - 1)] = 0
    """Seed of the weights, the sample order and everything else that is random."""
    resume: Literal["never", "auto"] = "never"
    """`auto` continues the run that `run.out` holds, `never` refuses a folder that holds one."""
    device: Literal["auto", "cuda", "cpu"] = "auto"
    """`auto` takes GPUs where a launch file asks for them or one is there."""
    precision: Precision | None = None
    """`fp32`, `tf32` (fp32 with products on tensor cores), or autocast to `bf16` or `fp16`; null
    takes that of the launch file."""
    deterministic: bool = False
    """Take only algorithms that give the same bits for the same input; on the CPU all do."""
    cudnn_benchmark: bool = False
    """Let cuDNN try its convolution algorithms and take the fastest."""
    overlap_comm: bool | None = None
    """Let ZeRO send gradients during the backward pass; with null only stage 3 does."""
    timeout_seconds: Seconds = 600.0
    """Seconds that ranks wait for each other at most."""
    stall_seconds: Seconds = 1800.0
    """A process without progress for this many seconds ends the run."""
    checkpoint_every: PositiveInt = 1000
    """Steps from one checkpoint to the next."""
    keep_last: PositiveInt = 2
    """Number of the newest checkpoints that are kept."""
    keep_every: PositiveInt | None = None
    """The checkpoints of steps that are multiples of this number are kept, too."""
    async_checkpoint: bool = True
    """Continue the training while a checkpoint is written."""
    profile: Annotated[str, AfterValidator(_check_window), _WINDOW] | None = None
    """Write a profiler trace of the steps after START up to END."""
    profile_ranks: Literal["first", "all"] = "first"
    """The processes that write a profiler trace: rank 0 or all."""

    @property
    def profile_window(self) -> tuple[int, int] | None:
        """Return START and END of `profile`."""
        return None if self.profile is None else _window(self.profile)

    @model_validator(mode="after")
    def _one_length(self) -> RunSection:
        if (self.steps is None) == (self.epochs is None):
            both = self.steps is not None
            way = "set the other to null, as in run.epochs=null" if both else "neither is given"
            raise ValueError(f"give exactly one of run.steps and run.epochs: {way}")
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
                f"run.keep_every: found {self.keep_every}; must be a multiple of "
                f"run.checkpoint_every, {self.checkpoint_every}"
            )
        return self

    @model_validator(mode="after")
    def _stall_last(self) -> RunSection:
        if self.stall_seconds <= self.timeout_seconds:
            raise ValueError(
                f"run.stall_seconds: found {self.stall_seconds:g}; must be above "
                f"run.timeout_seconds, {self.timeout_seconds:g}: a rank that waits for another "
                "makes no progress"
            )
        return self
