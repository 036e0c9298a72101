"""The sections of a configuration: frozen, unknown keys refused."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    model_validator,
)

from data_pipelines.shards.remote import check_url
from trainer.config.section import Fraction, PositiveFloat, PositiveInt, Section


def _location(value: Any) -> Any:  # noqa: ANN401 - whatever the file holds
    """A path, unless it is a URL, in which a path would lose a slash."""
    if isinstance(value, str):
        return check_url(value) if "://" in value else Path(check_url(value))
    return value


class DataSection(Section):
    """Which shards are read, and how the global batch is made of them.

    `stream` names tars that replace the train split and are read without an index, `cache_dir`
    keeps copies of remote shards, and `on_error: replace` goes on without damaged samples. A remote
    source that fails is asked again for `retry_seconds`.
    """

    shards: Annotated[Path | str, BeforeValidator(_location)]
    stream: Annotated[str, AfterValidator(check_url)] | None = None
    cache_dir: Path | None = None
    cache_gb: PositiveFloat = 100.0
    retry_seconds: Annotated[float, Field(ge=0.0)] = 120.0
    on_error: Literal["stop", "replace"] = "stop"
    max_bad_fraction: Fraction = 0.01
    train_split: str = "train"
    eval_split: str = "val"
    size: tuple[PositiveInt, PositiveInt]
    global_batch: PositiveInt
    workers: Annotated[int, Field(ge=0)] = 2
    streams: PositiveInt | None = None
    flip: bool = False
    crop: Annotated[float, Field(gt=0.0, le=1.0)] | None = None
    allow_flat_labels: bool = False


class TasksSection(Section):
    """Which tasks are learned; without `preset` or `names`, every label of the manifest."""

    preset: str | None = None
    names: tuple[str, ...] | None = None
    define: dict[str, dict[str, Any]] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _one_list(self) -> TasksSection:
        if self.preset is not None and self.names is not None:
            raise ValueError("give at most one of tasks.preset and tasks.names")
        return self


class EncoderSection(Section):
    """The encoder that the trunk and the branches are cut from."""

    name: str
    options: dict[str, Any] = Field(default_factory=dict)
    pretrained: Path | None = None


class ModelSection(Section):
    """Trunk, branches and heads.

    `start` names exported models whose weights the network starts with: one for all branches, or
    one for each. `dense_widths` are those of the decoder `resize`. With `sync_batchnorm: auto`
    batch statistics are those of all ranks where the device can (several GPUs), else each rank's.
    `compile` has torch compile trunk and branches in the first step. `checkpoint_branches` keeps
    less in memory: the backward pass computes each branch's forward pass again.
    """

    encoder: EncoderSection
    branches: PositiveInt
    trunk_depth: Annotated[int, Field(ge=0)] = 0
    init: Literal["independent", "copies"] = "independent"
    start: tuple[Path, ...] = ()
    gradient_scale: Literal["none", "paper", "published_code"] = "none"
    decoder: Literal["resize", "deconv"] = "resize"
    dense_widths: tuple[PositiveInt, ...] = (64, 32)
    sync_batchnorm: Literal["auto", "never"] = "auto"
    compile: bool = False
    checkpoint_branches: bool = False


class PruningSection(Section):
    """When heads are switched off; `start` and `finish` are shares of the run.

    The network is rebuilt without the heads that are off, with all that is kept of weights and
    moments, as soon as they are the share `compact` of its heads, a branch is empty, or all is
    decided.
    """

    threshold: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.05
    start: Fraction = 0.2
    finish: Fraction = 0.8
    every: PositiveInt = 50
    compact: Fraction = 0.2

    @model_validator(mode="after")
    def _ordered(self) -> PruningSection:
        if self.start > self.finish:
            raise ValueError(f"start {self.start} must not be after finish {self.finish}")
        return self


class OptimSection(Section):
    """Optimizer, learning rates and gradient accumulation.

    `multistep` multiplies the rates by `gamma` at the `milestones`, shares of the run. `plateau`
    does so where the train loss has not fallen by the share `threshold` for more than `patience`
    epochs, and not below `min_lr`. At most `skip_nonfinite` steps of the run whose losses or
    gradients are not finite are left out: weights, moments and groups stay as they are, the
    schedule and the data go on. One more ends the run.
    """

    name: Literal["adam", "adamw"] = "adamw"
    lr: PositiveFloat = 1e-3
    heads_lr: PositiveFloat | None = None
    weight_decay: Annotated[float, Field(ge=0.0)] = 0.0
    betas: tuple[Fraction, Fraction] = (0.9, 0.999)
    schedule: Literal["constant", "cosine", "multistep", "plateau"] = "cosine"
    warmup: Annotated[int, Field(ge=0)] = 0
    milestones: tuple[Fraction, ...] = ()
    gamma: PositiveFloat = 0.5
    patience: Annotated[int, Field(ge=0)] = 3
    threshold: Fraction = 0.1
    min_lr: Annotated[float, Field(ge=0.0)] = 3e-5
    clip: PositiveFloat | None = None
    skip_nonfinite: Annotated[int, Field(ge=0)] = 0
    accumulation: PositiveInt = 1

    @model_validator(mode="after")
    def _milestones_used(self) -> OptimSection:
        if (self.schedule == "multistep") != bool(self.milestones):
            raise ValueError("milestones are needed by schedule 'multistep' and by no other")
        return self

    @model_validator(mode="after")
    def _plateau_falls(self) -> OptimSection:
        if self.schedule == "plateau" and (self.gamma >= 1.0 or self.min_lr > self.lr):
            raise ValueError(
                f"gamma is {self.gamma}, min_lr is {self.min_lr}; for schedule 'plateau' they must "
                f"be below 1 and at most lr, {self.lr}"
            )
        return self


class FinetuneSection(Section):
    """Training of the groups that were found, after the run's own steps; there is none by default.

    `one_by_one` gives every group `steps` or `epochs` of its own, `together` all of them at once.
    The optimizer and its schedule start anew, from `lr` or else from `optim.lr`, to which
    `optim.heads_lr` keeps its ratio.
    """

    steps: Annotated[int, Field(ge=0)] = 0
    epochs: Annotated[float, Field(ge=0.0)] = 0.0
    order: Literal["one_by_one", "together"] = "one_by_one"
    lr: PositiveFloat | None = None
    freeze_trunk: bool = True

    @model_validator(mode="after")
    def _consistent(self) -> FinetuneSection:
        if self.steps and self.epochs:
            raise ValueError("give at most one of finetune.steps and finetune.epochs")
        if self.order == "one_by_one" and not self.freeze_trunk:
            raise ValueError(
                "freeze_trunk is false, which needs order 'together': with 'one_by_one' the trunk "
                "would change under the groups that are done"
            )
        return self


class EvalSection(Section):
    """Evaluation on `data.eval_split`; `every: 0` evaluates at the end only."""

    every: Annotated[int, Field(ge=0)] = 0
    batch: PositiveInt = 64
    limit: PositiveInt | None = None


class LogSection(Section):
    """What is shown and written while training.

    `trackers` are those of `accelerate.tracking`: `tensorboard`, `wandb`, `mlflow`, `trackio` and
    others; `tracker_options` holds for each the arguments that it starts a run with. A resumed run
    continues the same tracker runs. `peak_tflops` is that of one process's device, where the
    program does not know it.
    """

    every: PositiveInt = 10
    trackers: tuple[str, ...] = ("tensorboard",)
    tracker_options: dict[str, dict[str, Any]] = Field(default_factory=dict)
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
