"""The configuration of a run: its sections, YAML files and `section.key=value` overrides."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError, model_validator
from pydantic_core import ErrorDetails

from data_pipelines.shards import remote
from trainer.config.grouping import GroupingSection
from trainer.config.run import RunSection
from trainer.config.section import Section
from trainer.config.sections import (
    DataSection,
    EvalSection,
    FinetuneSection,
    LogSection,
    ModelSection,
    OptimSection,
    PruningSection,
    TasksSection,
)
from trainer.errors import UserError


class Config(Section):
    """Everything that a run depends on."""

    run: RunSection
    data: DataSection
    tasks: TasksSection = TasksSection()
    model: ModelSection
    grouping: GroupingSection = GroupingSection()
    pruning: PruningSection = PruningSection()
    optim: OptimSection = OptimSection()
    finetune: FinetuneSection = FinetuneSection()
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

    @model_validator(mode="after")
    def _epochs_known(self) -> Config:
        if self.data.stream is None:
            return self
        if self.optim.schedule == "plateau":
            raise ValueError(
                "optim.schedule is 'plateau', which needs epochs; data.stream has none"
            )
        if self.finetune.epochs:
            raise ValueError("finetune.epochs: data.stream has no end, give finetune.steps instead")
        return self

    @model_validator(mode="after")
    def _sources_in_time(self) -> Config:
        away = isinstance(self.data.shards, str) or self.data.stream is not None
        most = self.run.timeout_seconds - 2 * remote.TIMEOUT
        if away and self.data.retry_seconds >= most:
            raise ValueError(
                f"data.retry_seconds is {self.data.retry_seconds:g}; must be below {most:g}: two "
                f"attempts of {remote.TIMEOUT:g} s before run.timeout_seconds, "
                f"{self.run.timeout_seconds:g}, after which the other ranks give up"
            )
        return self

    def to_yaml(self) -> str:
        """The resolved configuration as YAML."""
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False)


class _Loader(yaml.SafeLoader):
    """SafeLoader for which `3e-4` is a number and `3:10` is none, as in YAML 1.2."""


_INT = "tag:yaml.org,2002:int"
_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag != _INT]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver(
    _INT,
    re.compile(r"^[-+]?(?:0b[01_]+|0x[0-9a-fA-F_]+|0[0-7_]*|[1-9][0-9_]*)$"),
    list("-+0123456789"),
)
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(?:\d+(?:\.\d*)?|\.\d+)[eE][-+]?\d+$"),
    list("-+0123456789."),
)


def load_config(path: Path, overrides: Iterable[str] = ()) -> Config:
    """Read a YAML file, apply `section.key=value` overrides and validate everything.

    A file may name another one by `base: PATH`, relative to itself, and say only what differs.

    Raises:
        UserError: the file cannot be read, or one or more keys or values are not allowed; all
            faults are in one message, a line each.
    """
    tree = _read(path, ())
    for override in overrides:
        apply_override(tree, override)
    return parse_config(tree, str(path))


def _read(path: Path, readers: tuple[Path, ...]) -> dict[str, Any]:
    """The values of a file and of its bases; `readers` are the files that led to it."""
    chain = " -> ".join(map(str, (*readers, path)))
    if path.resolve() in {reader.resolve() for reader in readers}:
        raise UserError(f"--config {chain}: base leads back to a file that is being read")
    try:
        tree = yaml.load(path.read_text(), Loader=_Loader)
    except OSError as error:
        raise UserError(f"--config {chain}: {error.strerror}") from None
    except yaml.YAMLError as error:
        raise UserError(f"--config {chain} is not YAML: {error}") from None
    if not isinstance(tree, dict):
        raise UserError(f"--config {chain} holds {tree!r}; expected a mapping of sections")
    base = tree.pop("base", None)
    if base is None:
        return tree
    if not isinstance(base, str):
        raise UserError(f"--config {chain}: base is {base!r}; allowed is the path of a YAML file")
    return _merged(_read(path.parent / base, (*readers, path)), tree)


def _merged(under: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    """Both trees' values, those of `over` first."""
    both = {
        key: _merged(under[key], value)
        for key, value in over.items()
        if isinstance(value, dict) and isinstance(under.get(key), dict)
    }
    return under | over | both


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


def apply_override(tree: dict[str, Any], override: str) -> None:
    """Set what `section.key=value` says in a tree of plain values.

    Raises:
        UserError: It does not have that form, or names a value where a section is needed.
    """
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
