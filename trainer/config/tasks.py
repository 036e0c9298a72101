"""The section `tasks` of a configuration."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from dmtg.plugins import TASK_KINDS
from model.tasks.presets import PRESETS
from trainer.config.allowed import KeysOf
from trainer.config.section import Options, Section
from trainer.config.task_definition import KindDefinition, TaskDefinition


class TasksSection(Section):
    """Which tasks are learned; without `preset` or `names`, every label of the manifest."""

    preset: Literal[tuple(PRESETS)] | None = None  # type: ignore[valid-type]
    """A named list of tasks with their scales; give at most one of this and `tasks.names`."""
    names: tuple[str, ...] | None = None
    """The labels to learn; null takes every label of the manifest, unless there is a preset."""
    define: dict[str, Annotated[Options, KeysOf(TaskDefinition, "TASK")]] = Field(
        default_factory=dict
    )
    """By task, what replaces the description in the preset or the manifest."""
    by_kind: dict[str, Annotated[Options, KeysOf(KindDefinition, "KIND")]] = Field(
        default_factory=dict
    )
    """By kind, what replaces the descriptions of all tasks of that kind; `define` comes first."""

    @field_validator("by_kind")
    @classmethod
    def _kinds(cls, by_kind: dict[str, Options]) -> dict[str, Options]:
        for kind in by_kind:
            TASK_KINDS.check(kind)
        return by_kind

    @model_validator(mode="after")
    def _one_list(self) -> TasksSection:
        if self.preset is not None and self.names is not None:
            raise ValueError("give at most one of tasks.preset and tasks.names")
        return self
