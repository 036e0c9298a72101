"""The configuration of a run: frozen sections, YAML files and `section.key=value` overrides."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from pydantic_core import ErrorDetails

from trainer.errors import UserError

Fraction = Annotated[float, Field(ge=0.0, le=1.0)]
PositiveInt = Annotated[int, Field(gt=0)]
PositiveFloat = Annotated[float, Field(gt=0.0)]


class Section(BaseModel):
    """A part of the configuration: immutable, unknown keys refused."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class RunSection(Section):
    """Where a run lives and how long it lasts."""

    out: Path
    steps: PositiveInt | None = None
    epochs: PositiveFloat | None = None
    seed: Annotated[int, Field(ge=0)] = 0
    resume: Literal["never", "auto"] = "never"
    precision: Literal["fp32", "bf16", "fp16"] | None = None
    checkpoint_every: PositiveInt = 1000
    keep_last: PositiveInt = 2

    @model_validator(mode="after")
    def _one_length(self) -> RunSection:
        if (self.steps is None) == (self.epochs is None):
            raise ValueError("give exactly one of run.steps and run.epochs")
        return self


class DataSection(Section):
    """Which shards are read, and how the global batch is made of them."""

    shards: Path
    train_split: str = "train"
    eval_split: str = "val"
    size: tuple[PositiveInt, PositiveInt]
    global_batch: PositiveInt
    workers: Annotated[int, Field(ge=0)] = 2
    streams: PositiveInt | None = None
    flip: bool = False
    crop: Annotated[float, Field(gt=0.0, le=1.0)] | None = None


class TasksSection(Section):
    """Which tasks are learned; without `preset` or `names`, every label of the manifest."""

    preset: str | None = None
    names: tuple[str, ...] | None = None
    define: dict[str, dict[str, Any]] = {}

    @model_validator(mode="after")
    def _one_list(self) -> TasksSection:
        if self.preset is not None and self.names is not None:
            raise ValueError("give at most one of tasks.preset and tasks.names")
        return self


class EncoderSection(Section):
    """The encoder that the trunk and the branches are cut from."""

    name: str
    options: dict[str, Any] = {}
    pretrained: Path | None = None


class ModelSection(Section):
    """Trunk, branches and heads."""

    encoder: EncoderSection
    branches: PositiveInt
    trunk_depth: Annotated[int, Field(ge=0)] = 0
    init: Literal["independent", "copies"] = "independent"
    dense_widths: tuple[PositiveInt, ...] = (64, 32)


class TemperatureSection(Section):
    """The relaxation's temperature from the first step to `pruning.finish`."""

    start: PositiveFloat = 2.5
    end: PositiveFloat = 2.5
    shape: Literal["linear", "exponential"] = "exponential"


class GroupingSection(Section):
    """The Categorical of each task over the branches."""

    sampler: Literal["gumbel", "straight_through"] = "gumbel"
    noise: Literal["per_rank", "shared"] = "per_rank"
    init: float = 1.0
    init_noise: Annotated[float, Field(ge=0.0)] = 0.0
    lr: PositiveFloat = 1e-3
    temperature: TemperatureSection = TemperatureSection()


class PruningSection(Section):
    """When heads are switched off; `start` and `finish` are shares of the run."""

    threshold: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.05
    start: Fraction = 0.2
    finish: Fraction = 0.8
    every: PositiveInt = 50

    @model_validator(mode="after")
    def _ordered(self) -> PruningSection:
        if self.start > self.finish:
            raise ValueError(f"start {self.start} must not be after finish {self.finish}")
        return self


class OptimSection(Section):
    """Optimizer, learning rates and gradient accumulation."""

    name: Literal["adam", "adamw"] = "adamw"
    lr: PositiveFloat = 1e-3
    heads_lr: PositiveFloat | None = None
    weight_decay: Annotated[float, Field(ge=0.0)] = 0.0
    betas: tuple[Fraction, Fraction] = (0.9, 0.999)
    schedule: Literal["constant", "cosine", "multistep"] = "cosine"
    warmup: Annotated[int, Field(ge=0)] = 0
    milestones: tuple[Fraction, ...] = ()
    gamma: PositiveFloat = 0.5
    clip: PositiveFloat | None = None
    accumulation: PositiveInt = 1

    @model_validator(mode="after")
    def _milestones_used(self) -> OptimSection:
        if (self.schedule == "multistep") != bool(self.milestones):
            raise ValueError("milestones are needed by schedule 'multistep' and by no other")
        return self


class EvalSection(Section):
    """Evaluation on `data.eval_split`; `every: 0` evaluates at the end only."""

    every: Annotated[int, Field(ge=0)] = 0
    batch: PositiveInt = 64
    limit: PositiveInt | None = None


class LogSection(Section):
    """What is shown and written while training."""

    every: PositiveInt = 10
    tensorboard: bool = True
    progress: bool = True


class Config(Section):
    """Everything that a run depends on."""

    run: RunSection
    data: DataSection
    tasks: TasksSection = TasksSection()
    model: ModelSection
    grouping: GroupingSection = GroupingSection()
    pruning: PruningSection = PruningSection()
    optim: OptimSection = OptimSection()
    eval: EvalSection = EvalSection()
    log: LogSection = LogSection()

    @model_validator(mode="after")
    def _threshold_below_uniform(self) -> Config:
        if self.model.branches > 1 and self.pruning.threshold >= 1.0 / self.model.branches:
            raise ValueError(
                f"pruning.threshold is {self.pruning.threshold}; must be below 1/model.branches = "
                f"{1.0 / self.model.branches:.4g}, the probability that every head starts with"
            )
        return self

    def to_yaml(self) -> str:
        """The resolved configuration as YAML."""
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False)


class _Loader(yaml.SafeLoader):
    """SafeLoader for which `3e-4` is a number, as in YAML 1.2."""


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(?:\d+(?:\.\d*)?|\.\d+)[eE][-+]?\d+$"),
    list("-+0123456789."),
)


def load_config(path: Path, overrides: Iterable[str] = ()) -> Config:
    """Read a YAML file, apply `section.key=value` overrides and validate everything.

    Raises:
        UserError: the file cannot be read, or one or more keys or values are not allowed; all
            faults are in one message, a line each.
    """
    try:
        tree = yaml.load(path.read_text(), Loader=_Loader)
    except OSError as error:
        raise UserError(f"--config {path}: {error.strerror}") from None
    except yaml.YAMLError as error:
        raise UserError(f"--config {path} is not YAML: {error}") from None
    if not isinstance(tree, dict):
        raise UserError(f"--config {path} holds {tree!r}; expected a mapping of sections")
    for override in overrides:
        _apply(tree, override)
    return parse_config(tree, str(path))


def parse_config(tree: dict[str, Any], source: str) -> Config:
    """Validate a tree of plain values; `source` names it in the message.

    Raises:
        UserError: as `load_config`.
    """
    try:
        return Config.model_validate(tree)
    except ValidationError as error:
        faults = "\n".join(f"  {_fault(item)}" for item in error.errors())
        raise UserError(f"{source}: {error.error_count()} fault(s)\n{faults}") from None


def _apply(tree: dict[str, Any], override: str) -> None:
    path, equals, text = override.partition("=")
    *sections, key = path.split(".")
    if not equals or not sections:
        raise UserError(f"override {override!r}: expected section.key=value")
    for name in sections:
        tree = tree.setdefault(name, {})
        if not isinstance(tree, dict):
            raise UserError(f"override {override!r}: {name!r} is a value, not a section")
    try:
        tree[key] = yaml.load(text, Loader=_Loader)
    except yaml.YAMLError:
        raise UserError(f"override {override!r}: {text!r} is not a YAML value") from None


def _fault(item: ErrorDetails) -> str:
    """One line for one fault: dotted path, value found, what is allowed."""
    path = ".".join(str(part) for part in item["loc"]) or "config"
    if item["type"] == "extra_forbidden":
        return f"{path}: unknown key; allowed: {', '.join(_keys_beside(item['loc']))}"
    if item["type"] == "missing":
        return f"{path}: required and not given"
    if item["type"] == "value_error":  # a check across keys, which names them itself
        return f"{path}: {item['msg'].removeprefix('Value error, ')}"
    return f"{path}: found {item['input']!r}; {item['msg']}"


def _keys_beside(loc: tuple[int | str, ...]) -> list[str]:
    model: Any = Config
    for part in loc[:-1]:
        model = model.model_fields[part].annotation
    return sorted(model.model_fields)
